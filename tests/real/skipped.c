#include "tests/real/skipped.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static const struct {
    const char *row, *why;
} rows[] = {
    {NULL, NULL},
};

const char *skipped_why(const char *row_name)
{
    for (uint32_t i = 0; rows[i].row != NULL; i++) {
        if (strcmp(rows[i].row, row_name) == 0) {
            return rows[i].why;
        }
    }
    return NULL;
}
