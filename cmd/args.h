/* Options of a subcommand as a table: parsed by getopt_long, printed by --help.
 * A command exits with 0 (done), 1 (it failed), 2 (wrong usage) or, for
 * status, 3 (the cluster answers, and something is wrong with it). */
#ifndef CMD_ARGS_H
#define CMD_ARGS_H

#include <stdbool.h>
#include <stdint.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_UNWELL = 3 };

enum arg_kind { ARG_FLAG, ARG_TEXT, ARG_NUMBER };

struct arg_option {
    const char *name; /* NULL ends the table */
    char letter;      /* 0 for none */
    enum arg_kind kind;
    void *value; /* bool, const char * (borrowed from argv), or uint64_t */
    const char *metavar; /* NULL for a flag */
    const char *help;
};

struct arg_spec {
    const char *usage; /* after "usage: flotilla " */
    const char *about;
    const struct arg_option *options;
    uint32_t positional_min, positional_max;
    bool stops; /* what follows the first positional argument is not ours */
};

/* Parses argv[1..], options and positional arguments in any order; "--" ends
 * the options, for a value that begins with a dash. argv is put in order. True:
 * go on, and the positional arguments are at argv[*first..]. False: return
 * *status at once (--help, or wrong usage, which was explained on standard
 * error). */
bool args_parse(const struct arg_spec *spec, int argc, char **argv, int *first,
                int *status);

/* A whole decimal number in [low, high]; false otherwise. */
bool args_number(const char *text, uint64_t low, uint64_t high, uint64_t *out);

#endif
