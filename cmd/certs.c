/* flotilla certs: the cluster's CA, and certificates signed by it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cmd/args.h"
#include "cmd/cmd.h"
#include "transport/tls.h"

static int report(enum err rc, const char *what, const char *dir,
                  const char *name)
{
    if (rc == ERR_OK) {
        printf("made %s/%s.crt and .key\n", dir, name);
        return EXIT_DONE;
    }
    fprintf(stderr, "flotilla: cannot make %s %s/%s.crt: %s\n", what, dir, name,
            err_text(rc));
    return EXIT_FAILED;
}

static int show(const char *dir, const char *name)
{
    uint64_t end_s = 0;
    enum err rc = tls_certificate_end(dir, name, &end_s);
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot read %s/%s.crt: %s\n", dir, name,
                err_text(rc));
        return EXIT_FAILED;
    }
    time_t end = (time_t)end_s;
    struct tm tm;
    char text[64];
    strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", gmtime_r(&end, &tm));
    printf("%s/%s.crt is valid until %s\n", dir, name, text);
    return EXIT_DONE;
}

int cmd_certs(int argc, char **argv)
{
    const char *dir = "certs", *unit = NULL;
    const char *hosts = "127.0.0.1,::1,localhost";
    uint64_t days = 3650;
    const struct arg_option options[] = {
        {"dir", 'd', ARG_TEXT, &dir, "DIR", "where they are (certs)"},
        {"role", 'r', ARG_TEXT, &unit, "ROLE",
         "client, admin, or server:GROUP (with make)"},
        {"hosts", 0, ARG_TEXT, &hosts, "LIST",
         "addresses and names a server answers at"},
        {"days", 0, ARG_NUMBER, &days, "N", "how long it is valid (3650)"},
        {0}};
    const struct arg_spec spec = {
        .usage = "certs ca | make NAME --role ROLE | show NAME  [OPTION...]",
        .about = "Makes the cluster's own CA (ca), a certificate signed by it "
                 "(make), or says how\nlong one is valid (show). The role "
                 "decides what its holder may do.",
        .options = options,
        .positional_min = 1,
        .positional_max = 2};
    int first = 0, status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    const char *action = argv[first];
    const char *name = first + 1 < argc ? argv[first + 1] : NULL;
    if (days == 0 || days > 36500) {
        fprintf(stderr, "flotilla: --days wants 1 to 36500\n");
        return EXIT_USAGE;
    }
    if (strcmp(action, "show") == 0 && name != NULL) {
        return show(dir, name);
    }
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        fprintf(stderr, "flotilla: cannot make %s: %s\n", dir, strerror(errno));
        return EXIT_FAILED;
    }
    if (strcmp(action, "ca") == 0) {
        return report(tls_make_ca(dir, "flotilla", (uint32_t)days), "the CA",
                      dir, "ca");
    }
    if (strcmp(action, "make") == 0 && name != NULL && unit != NULL) {
        const struct tls_identity who = {
            .name = name, .unit = unit, .hosts = hosts, .days = (uint32_t)days};
        return report(tls_make_certificate(dir, &who), "certificate", dir,
                      name);
    }
    fprintf(stderr, "usage: flotilla %s\n", spec.usage);
    return EXIT_USAGE;
}
