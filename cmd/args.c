#include "cmd/args.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTIONS_MAX = 32, LONG_BASE = 256 };

static void print_help(FILE *to, const struct arg_spec *spec)
{
    fprintf(to, "usage: flotilla %s\n\n%s\n\n", spec->usage, spec->about);
    for (const struct arg_option *o = spec->options; o->name != NULL; o++) {
        char left[64];
        char letter[8] = "    ";
        if (o->letter != 0) {
            snprintf(letter, sizeof letter, "-%c, ", o->letter);
        }
        snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name,
                 o->metavar != NULL ? " " : "",
                 o->metavar != NULL ? o->metavar : "");
        fprintf(to, "  %-28s %s\n", left, o->help);
    }
    fprintf(to, "  %-28s %s\n", "-h, --help", "print this");
}

bool args_number(const char *text, uint64_t low, uint64_t high, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    /* strtoull() would also take blanks and a sign first. */
    if (text[0] < '0' || text[0] > '9' || errno != 0 || *end != 0 || v < low ||
        v > high) {
        return false;
    }
    *out = v;
    return true;
}

static bool take(const struct arg_option *o, const char *text)
{
    switch (o->kind) {
    case ARG_FLAG: *(bool *)o->value = true; return true;
    case ARG_TEXT: *(const char **)o->value = text; return true;
    case ARG_NUMBER:
        if (!args_number(text, 0, UINT64_MAX, o->value)) {
            fprintf(stderr, "flotilla: --%s wants a number, not '%s'\n",
                    o->name, text);
            return false;
        }
        return true;
    }
    return false;
}

/* Fills getopt's tables from ours. */
static uint32_t tables(const struct arg_spec *spec, struct option *longs,
                       char *shorts)
{
    uint32_t count = 0;
    if (spec->stops) {
        *shorts++ = '+';
    }
    *shorts++ = 'h';
    for (const struct arg_option *o = spec->options; o->name != NULL; o++) {
        int has = o->kind == ARG_FLAG ? no_argument : required_argument;
        longs[count] = (struct option){
            .name = o->name, .has_arg = has, .val = LONG_BASE + (int)count};
        if (o->letter != 0) {
            *shorts++ = o->letter;
            if (has == required_argument) {
                *shorts++ = ':';
            }
        }
        count++;
    }
    longs[count] = (struct option){.name = "help", .val = 'h'};
    longs[count + 1] = (struct option){0};
    *shorts = 0;
    return count;
}

static const struct arg_option *chosen(const struct arg_spec *spec, int c)
{
    for (const struct arg_option *o = spec->options; o->name != NULL; o++) {
        if (c == LONG_BASE + (int)(o - spec->options) || c == o->letter) {
            return o;
        }
    }
    return NULL;
}

bool args_parse(const struct arg_spec *spec, int argc, char **argv, int *first,
                int *status)
{
    struct option longs[OPTIONS_MAX + 2];
    char shorts[2 * OPTIONS_MAX + 3];
    tables(spec, longs, shorts);
    *status = EXIT_USAGE;
    optind = 0; /* begin anew, and read the '+' again */
    for (int c; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (c == 'h') {
            print_help(stdout, spec);
            *status = EXIT_DONE;
            return false;
        }
        const struct arg_option *o = c == '?' ? NULL : chosen(spec, c);
        if (o == NULL || !take(o, optarg)) {
            fprintf(stderr, "usage: flotilla %s\n(--help says more)\n",
                    spec->usage);
            return false;
        }
    }
    uint32_t left = (uint32_t)(argc - optind);
    if (left < spec->positional_min || left > spec->positional_max) {
        fprintf(stderr, "usage: flotilla %s\n(--help says more)\n",
                spec->usage);
        return false;
    }
    *first = optind;
    return true;
}
