/* Which rows somebody asks for. */
#include <string.h>

#include "tests/labs/labs.h"

static bool names(const char *which, const struct lab_table *table,
                  const struct lab_row *row)
{
    size_t size = strlen(which);
    return strncmp(which, table->part, size < 2 ? 1 : 3) == 0 ||
           strcmp(which, row->number) == 0 ||
           (size > 2 && strstr(row->name, which) != NULL);
}

bool lab_wanted(const struct lab_table *table, const struct lab_row *row,
                char **which, int count)
{
    for (int i = 0; i < count; i++) {
        if (names(which[i], table, row)) {
            return true;
        }
    }
    return count == 0;
}
