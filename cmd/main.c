#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cmd/args.h"
#include "cmd/cmd.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} commands[] = {
    {"up", cmd_up, "start a cluster on this machine, and mount it"},
    {"down", cmd_down, "unmount and stop it; the data stays"},
    {"status", cmd_status, "who leads, who owns what, what is wrong"},
    {"mount", cmd_mount, "mount the filesystem"},
    {"umount", cmd_umount, "unmount it"},
    {"kv", cmd_kv, "put, append, get, delete: the store without files"},
    {"shards", cmd_shards, "join, leave, move, query: which group owns which"},
    {"member", cmd_member, "who is in a group: add, remove, replace, list"},
    {"certs", cmd_certs, "make the cluster's CA and certificates"},
    {"backup", cmd_backup, "all of it, as of one moment, into a file"},
    {"restore", cmd_restore, "a backup into an empty cluster"},
    {"fsck", cmd_fsck, "compare what the replicas hold"},
    {"server", cmd_server, "run one replica of one group"},
    {"bench", cmd_bench, "measure the key/value store"},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void print_help(FILE *to)
{
    fputs("usage: flotilla COMMAND [OPTION...]\n\n"
          "A replicated, sharded filesystem: every file is a value in a "
          "key/value store on Raft.\n\n",
          to);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].about);
    }
    fputs("\n`flotilla COMMAND --help` says more about one.\n", to);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

int main(int argc, char **argv)
{
    /* What daemons log on their way is no news to who typed a command. */
    log_set_level(LOG_LEVEL_WARN);
    /* mount(8) runs mount.flotilla SOURCE DIR -o OPTIONS. */
    if (strcmp(base_name(argv[0]), "mount.flotilla") == 0) {
        return cmd_mount(argc, argv);
    }
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("flotilla " FLOTILLA_VERSION);
        return EXIT_DONE;
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    fprintf(stderr,
            "flotilla: there is no command '%s'; `flotilla --help` "
            "lists them\n",
            argv[1]);
    return EXIT_USAGE;
}
