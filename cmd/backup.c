/* flotilla backup: all shards, as of one moment, into one file
 * (docs/backup.md). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cmd/args.h"
#include "cmd/ask.h"
#include "cmd/claim.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/progress.h"
#include "cmd/view.h"
#include "shardkv/archive.h"

enum { CONNECT_MS = 10000, TAKE_MS = 60000, LOOK_MS = 30000 };

struct backup {
    struct skv_client *client;
    struct view *view;
    const char *path; /* of the file; NULL: standard output */
    char *temporary;
    int fd;
    int failed_errno;
    struct skv_archive_writer writer;
    struct progress progress;
};

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
    (void)number;
    stopped = 1;
}

static enum err write_out(void *arg, struct slice bytes)
{
    struct backup *b = arg;
    while (bytes.size > 0) {
        ssize_t wrote = write(b->fd, bytes.data, bytes.size);
        if (stopped) {
            return ERR_INTERRUPTED;
        }
        if (wrote < 0 && errno != EINTR) {
            b->failed_errno = errno;
            return ERR_IO;
        }
        if (wrote > 0) {
            bytes = slice_of(bytes.data + wrote, bytes.size - (size_t)wrote);
        }
    }
    return ERR_OK;
}

/* ---- the file ---- */

static bool cannot(const char *what, const char *path, int number)
{
    fprintf(stderr, "flotilla: cannot %s %s: %s\n", what, path,
            strerror(number));
    return false;
}

static bool output_open(struct backup *b)
{
    if (b->path == NULL) {
        b->fd = STDOUT_FILENO;
        if (isatty(b->fd) == 1) {
            fputs("flotilla: a backup is not for a terminal: name a file, or "
                  "send standard output to one\n",
                  stderr);
            return false;
        }
        return true;
    }
    struct stat st;
    if (stat(b->path, &st) == 0 && !S_ISREG(st.st_mode)) {
        /* A device or a pipe stays what it is. */
        b->fd = open(b->path, O_WRONLY | O_CLOEXEC);
        return b->fd >= 0 ? true : cannot("write", b->path, errno);
    }
    /* A name of its own: two backups at once are two files. */
    b->temporary = mem_printf("%s.tmp-XXXXXX", b->path);
    b->fd = mkostemp(b->temporary, O_CLOEXEC);
    return b->fd >= 0 ? true : cannot("write", b->temporary, errno);
}

/* What was there under the name stays until this is whole and on the disk. */
static bool output_keep(struct backup *b)
{
    if (b->temporary == NULL) {
        return true;
    }
    char *dir = mem_strdup(b->path);
    char *slash = strrchr(dir, '/');
    if (slash != NULL) {
        slash[slash == dir] = '\0';
    }
    bool kept = fsync(b->fd) == 0 && rename(b->temporary, b->path) == 0;
    int fd =
        kept ? open(slash != NULL ? dir : ".", O_RDONLY | O_DIRECTORY) : -1;
    kept = fd >= 0 && fsync(fd) == 0;
    int number = errno;
    if (fd >= 0) {
        close(fd);
    }
    mem_free(dir);
    return kept ? true : cannot("keep", b->path, number);
}

static void output_close(struct backup *b, bool good)
{
    if (b->fd >= 0 && b->path != NULL) {
        close(b->fd);
    }
    if (b->temporary != NULL) {
        if (!good && b->fd >= 0) {
            unlink(b->temporary);
        }
        mem_free(b->temporary);
    }
}

/* ---- the contents ---- */

/* Bytes that the groups say they hold, about. */
static uint64_t total_bytes(struct backup *b)
{
    struct arena arena = {0};
    uint32_t count = 0;
    uint64_t total = 0;
    const struct skv_cut_group *groups =
        skv_cutter_groups(view_cutter(b->view), &count);
    for (uint32_t g = 0; g < count; g++) {
        struct ask_replica replicas[CTL_SERVERS_MAX] = {0};
        uint64_t most = 0;
        for (uint32_t i = 0; i < groups[g].server_count; i++) {
            replicas[i].gid = groups[g].gid;
            memcpy(replicas[i].address, groups[g].servers[i].address,
                   sizeof replicas[i].address);
        }
        ask_statuses(b->client, replicas, groups[g].server_count, 1000, &arena);
        for (uint32_t i = 0; i < groups[g].server_count; i++) {
            uint64_t bytes =
                replicas[i].rc == ERR_OK ? replicas[i].status.bytes : 0;
            most = bytes > most ? bytes : most;
        }
        total += most;
    }
    arena_free(&arena);
    return total;
}

static bool look_failed(const struct backup *b, uint32_t shard, enum err rc)
{
    uint32_t count = 0;
    const struct skv_cut_group *groups =
        skv_cutter_groups(view_cutter(b->view), &count);
    uint32_t gid = groups[skv_cutter_owner(view_cutter(b->view), shard)].gid;
    if (rc == ERR_NOTFOUND) {
        fprintf(stderr,
                "flotilla: the view of group %u is gone: its replicas were "
                "started anew, or cannot keep more views; run it again\n",
                gid);
    } else if (rc == ERR_EXPIRED) {
        fprintf(stderr,
                "flotilla: the view of group %u was given up: too much was "
                "overwritten meanwhile; run it again when less is\n",
                gid);
    } else {
        fprintf(stderr, "flotilla: cannot read shard %u from group %u: %s\n",
                shard, gid, err_text(rc));
    }
    return false;
}

/* Half of another backup is none. */
static bool is_being_restored(const struct skv_seen *seen)
{
    struct buf key = {0};
    bool found = false;
    claim_key(&key);
    for (uint32_t i = 0; i < seen->records_count && !found; i++) {
        found = slice_compare(seen->records[i].key, buf_slice(&key)) == 0;
    }
    buf_free(&key);
    return found;
}

static bool write_failed(const struct backup *b)
{
    enum err rc = b->writer.rc;
    if (stopped || rc == ERR_INTERRUPTED) {
        fputs("flotilla: backup stopped; nothing was kept\n", stderr);
        return false;
    }
    return cannot("write",
                  b->temporary != NULL ? b->temporary
                  : b->path != NULL    ? b->path
                                       : "standard output",
                  b->failed_errno);
}

static bool write_shard(struct backup *b, struct view_cursor *at,
                        uint16_t shard)
{
    uint32_t group = skv_cutter_owner(view_cutter(b->view), shard);
    view_cursor_begin(at, shard, false);
    while (!at->last) {
        struct arena arena = {0};
        struct view_ask ask = {.group = group,
                               .server = SKV_SERVER_ANY,
                               .look = {.what = SKV_LOOK_READ,
                                        .shard = shard,
                                        .key = buf_slice(&at->key),
                                        .offset = at->offset}};
        view_ask(b->view, &ask, 1, LOOK_MS, &arena);
        bool half = ask.rc == ERR_OK && shard == CLAIM_SHARD &&
                    is_being_restored(&ask.seen);
        if (ask.rc == ERR_OK && !half) {
            struct skv_archive_data data = {.shard = shard,
                                            .records = ask.seen.records,
                                            .records_count =
                                                ask.seen.records_count};
            skv_archive_add(&b->writer, &data);
            view_cursor_move(at, &ask.seen);
        }
        arena_free(&arena);
        if (ask.rc != ERR_OK) {
            return look_failed(b, shard, ask.rc);
        }
        if (half) {
            fputs("flotilla: a restore into this cluster runs or was broken "
                  "off: there is nothing whole to back up\n",
                  stderr);
            return false;
        }
        if (b->writer.rc != ERR_OK || stopped) {
            return write_failed(b);
        }
        progress_show(&b->progress, b->writer.bytes + b->writer.shard_bytes,
                      b->writer.keys + b->writer.shard_keys);
    }
    skv_archive_end_shard(&b->writer, shard);
    return true;
}

static void write_head(struct backup *b)
{
    const struct ctl_config *config = skv_cutter_config(view_cutter(b->view));
    struct timespec now;
    struct buf bytes = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    ctl_config_encode(&bytes, config);
    struct skv_archive_head head = {
        .id = skv_cutter_id(view_cutter(b->view)),
        .wall_us =
            (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000,
        .shard_count = config->shards_count,
        .config = buf_slice(&bytes),
    };
    skv_archive_begin(&b->writer, &head);
    buf_free(&bytes);
}

static bool write_all(struct backup *b)
{
    uint32_t shards = skv_cutter_config(view_cutter(b->view))->shards_count;
    struct view_cursor at = {0};
    bool good = true;
    write_head(b);
    for (uint32_t s = 0; good && s < shards; s++) {
        good = write_shard(b, &at, (uint16_t)s);
    }
    buf_free(&at.key);
    return good && (skv_archive_end(&b->writer) == ERR_OK || write_failed(b));
}

static bool run(struct backup *b)
{
    b->view = view_open(b->client, true, TAKE_MS);
    if (b->view == NULL) {
        return false;
    }
    progress_begin(&b->progress, "backup", total_bytes(b));
    bool good = write_all(b);
    progress_end(&b->progress);
    view_close(b->view);
    return good && output_keep(b);
}

int cmd_backup(int argc, char **argv)
{
    struct cluster_access access = {0};
    const struct arg_option options[] = {CLUSTER_ACCESS_OPTIONS(&access), {0}};
    const struct arg_spec spec = {
        .usage = "backup [OPTION...] FILE|-",
        .about =
            "Writes all files and keys, as of one moment, to FILE or standard "
            "output, while the\ncluster serves. `flotilla restore` reads it.",
        .options = options,
        .positional_min = 1,
        .positional_max = 1,
    };
    int first = 0;
    int status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    struct backup b = {
        .path = strcmp(argv[first], "-") == 0 ? NULL : argv[first], .fd = -1};
    b.writer.write = write_out;
    b.writer.arg = &b;
    struct sigaction stop = {.sa_handler = on_signal};
    struct sigaction broken_pipe = {.sa_handler = SIG_IGN};
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGPIPE, &broken_pipe, NULL);
    b.client = cluster_connect(&access, "admin", CONNECT_MS);
    if (b.client == NULL) {
        return EXIT_FAILED;
    }
    bool good = output_open(&b) && run(&b);
    output_close(&b, good);
    skv_client_free(b.client);
    if (good) {
        char size[24];
        fprintf(stderr, "backup of %" PRIu64 " keys, %s\n", b.writer.keys,
                progress_size(b.writer.bytes, size));
    }
    skv_archive_writer_fini(&b.writer);
    return good ? EXIT_DONE : EXIT_FAILED;
}
