/* What a run of labs_real has of its own: a directory in /tmp, certificates,
 * ports; and whether a signal asks it to end. */
#ifndef TESTS_REAL_HOME_H
#define TESTS_REAL_HOME_H

#include <stdbool.h>
#include <stdint.h>

/* Made once; removes what runners that were killed have left. Explains failures
 * on standard error. */
bool home_make(void);
/* A signal asks this run to end. */
bool home_interrupted(void);
void home_remove(void); /* if no row has left anything there */
const char *home_row_make(const char *row); /* an empty directory */
const char *home_row_dir(void);
void home_row_remove(void);
const char *home_certs(void);
/* The first of `count` free ports; not the same soon. */
uint32_t home_ports(uint32_t count);
const char *home_program(void); /* labs_node, beside this one */

#endif
