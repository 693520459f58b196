/* Rows that make no sense on processes, and why, in words. */
#ifndef TESTS_REAL_SKIPPED_H
#define TESTS_REAL_SKIPPED_H

const char *skipped_why(const char *row_name); /* NULL: it runs */

#endif
