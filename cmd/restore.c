/* flotilla restore: a backup into an empty cluster (docs/backup.md). While it
 * runs a key of its own stands in the cluster (claim.h), and goes last: a
 * restore that was broken off is known, and the next one begins by emptying the
 * cluster; two at once do not both write. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "cmd/args.h"
#include "cmd/ask.h"
#include "cmd/claim.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/progress.h"
#include "cmd/view.h"
#include "fs/keys.h"
#include "shardkv/archive.h"

enum {
    CONNECT_MS = 10000,
    TAKE_MS = 60000,
    LOOK_MS = 30000,
    WRITE_MS = 120000,
    /* Of one request; well below what it may have (shardkv/request.h). */
    PUT_SIZE = 1 << 20,
};

struct restore {
    struct skv_client *client;
    const char *path; /* NULL: standard input */
    bool force;
    int fd;
    int copy;      /* of what cannot be read twice; -1: none */
    uint64_t size; /* 0: not known */
    struct skv_archive_reader reader;
    struct claim claim;
    uint64_t occupied; /* keys that make the cluster not empty */
    /* A request being filled; keys and data are borrowed until it is run. The
     * first item is the claim's. */
    struct skv_item items[SKV_ITEMS_MAX];
    uint32_t item_count;
    size_t item_bytes;
    struct progress progress;
    uint64_t keys, bytes; /* restored */
};

static bool failed(const char *what, const char *why)
{
    fprintf(stderr, "flotilla: %s: %s\n", what, why);
    return false;
}

static const char *name_of(const struct restore *r)
{
    return r->path != NULL ? r->path : "standard input";
}

/* ---- writing ---- */

static bool flush(struct restore *r)
{
    struct skv_txn txn = {.items = r->items,
                          .item_count = r->item_count + 1,
                          .timeout_ms = WRITE_MS};
    if (r->item_count == 0) {
        return true;
    }
    r->items[0] = claim_guard(&r->claim);
    enum err rc = skv_client_run(r->client, &txn);
    arena_free(&txn.arena);
    r->item_count = 0;
    r->item_bytes = 0;
    return rc == ERR_OK || failed("cannot write", claim_words(rc));
}

static bool add(struct restore *r, struct skv_item item)
{
    if ((r->item_count == SKV_ITEMS_MAX - 1 ||
         r->item_bytes + item.data.size > PUT_SIZE) &&
        !flush(r)) {
        return false;
    }
    r->items[++r->item_count] = item;
    r->item_bytes += item.data.size;
    return true;
}

static bool add_record(struct restore *r, const struct skv_record *k)
{
    if (k->offset == 0 && k->data.size == k->length) {
        return add(r, (struct skv_item){
                          .kind = SKV_PUT, .key = k->key, .data = k->data});
    }
    if (k->offset == 0 && !add(r, (struct skv_item){.kind = SKV_TRUNCATE,
                                                    .key = k->key,
                                                    .number = k->length})) {
        return false;
    }
    return k->data.size == 0 || add(r, (struct skv_item){.kind = SKV_PUT_RANGE,
                                                         .key = k->key,
                                                         .offset = k->offset,
                                                         .data = k->data});
}

/* ---- the backup ---- */

static bool copy_out(struct restore *r, const uint8_t *from, size_t size)
{
    while (size > 0) {
        ssize_t wrote = write(r->copy, from, size);
        if (wrote < 0 && errno != EINTR) {
            return failed("cannot keep a copy of standard input in $TMPDIR",
                          strerror(errno));
        }
        from += wrote > 0 ? wrote : 0;
        size -= wrote > 0 ? (size_t)wrote : 0;
    }
    return true;
}

static enum err read_in(void *arg, void *to, size_t size_max, size_t *size)
{
    struct restore *r = arg;
    ssize_t got = -1;
    do {
        got = read(r->fd, to, size_max);
    } while (got < 0 && errno == EINTR);
    if (got < 0 || (r->copy >= 0 && !copy_out(r, to, (size_t)got))) {
        return ERR_IO;
    }
    *size = (size_t)got;
    return ERR_OK;
}

/* A pipe's bytes come once: they are kept where nobody sees them until all have
 * been checked. */
static bool copy_open(struct restore *r)
{
    const char *dir = getenv("TMPDIR");
    char *name = mem_printf("%s/flotilla-restore-XXXXXX",
                            dir != NULL ? dir : "/var/tmp");
    r->copy = mkostemp(name, O_CLOEXEC);
    bool good = r->copy >= 0 && unlink(name) == 0;
    if (!good) {
        failed(name, strerror(errno));
    }
    mem_free(name);
    return good;
}

static void reader_begin(struct restore *r)
{
    skv_archive_reader_fini(&r->reader);
    r->reader = (struct skv_archive_reader){.read = read_in, .arg = r};
}

static bool next(struct restore *r, struct skv_archive_item *item)
{
    enum err rc = skv_archive_next(&r->reader, item);
    return rc == ERR_OK ? true : failed(name_of(r), r->reader.problem);
}

/* All of it, before anything is written. */
static bool verify(struct restore *r)
{
    struct skv_archive_item item = {0};
    bool good = true;
    reader_begin(r);
    progress_begin(&r->progress, "verify", r->size);
    while (good && item.type != SKV_ARCHIVE_END) {
        good = next(r, &item);
        progress_show(&r->progress, r->reader.offset,
                      r->reader.keys + r->reader.shard_keys);
    }
    progress_end(&r->progress);
    if (good && r->copy >= 0) {
        r->fd = r->copy;
        r->copy = -1;
        r->size = r->reader.offset;
    }
    if (good && lseek(r->fd, 0, SEEK_SET) != 0) {
        return failed(name_of(r), strerror(errno));
    }
    return good;
}

static bool take_item(struct restore *r, const struct skv_archive_item *item)
{
    bool good = true;
    if (item->type != SKV_ARCHIVE_DATA) {
        return true;
    }
    for (uint32_t i = 0; good && i < item->data.records_count; i++) {
        const struct skv_record *k = &item->data.records[i];
        good = add_record(r, k);
        r->keys += k->offset == 0;
        r->bytes += k->data.size;
    }
    return good && flush(r); /* the records are borrowed */
}

static bool restore_all(struct restore *r)
{
    struct skv_archive_item item = {0};
    bool good = true;
    progress_begin(&r->progress, "restore", r->size);
    while (good && item.type != SKV_ARCHIVE_END) {
        good = next(r, &item) && take_item(r, &item);
        /* By the place in the file, whose size is known; keys as restored. */
        progress_show(&r->progress, r->reader.offset, r->keys);
    }
    progress_end(&r->progress);
    if (!good) {
        fprintf(stderr,
                "flotilla: %" PRIu64 " keys were restored, of shards 0 to %u, "
                "the last not wholly; the cluster is not to be used before a "
                "restore has ended well\n",
                r->keys, r->reader.shards);
    }
    return good;
}

/* ---- the cluster ---- */

/* What mkfs makes, and counters. */
static bool is_of_an_empty_one(struct slice key)
{
    uint64_t object = get_be64(key.data);
    bool root = object == fs_ino(0, FS_INO_ROOT) &&
                key.size == SKV_OBJECT_SIZE + 1 &&
                key.data[SKV_OBJECT_SIZE] == FS_KEY_ATTR;
    return root || (object & SKV_OBJECT_KV) == FS_OBJECT_SHARD;
}

/* One batch of a shard: count what is there, or delete it. */
static bool look_batch(struct restore *r, struct view *v,
                       struct view_cursor *at, bool erase)
{
    struct arena arena = {0};
    struct view_ask ask = {.group = skv_cutter_owner(view_cutter(v), at->shard),
                           .server = SKV_SERVER_ANY,
                           .look = {.what = SKV_LOOK_READ,
                                    .shard = at->shard,
                                    .key = buf_slice(&at->key),
                                    .offset = at->offset}};
    view_ask(v, &ask, 1, LOOK_MS, &arena);
    bool good = ask.rc == ERR_OK ||
                failed("cannot look at the cluster", err_text(ask.rc));
    for (uint32_t i = 0; good && i < ask.seen.records_count; i++) {
        struct slice key = ask.seen.records[i].key;
        if (slice_compare(key, buf_slice(&r->claim.key)) == 0) {
            continue;
        }
        if (!erase) {
            r->occupied += !is_of_an_empty_one(key);
        } else if (ask.seen.records[i].offset == 0) {
            good = add(r, (struct skv_item){.kind = SKV_DELETE, .key = key});
        }
    }
    good = good && flush(r);
    if (good) {
        view_cursor_move(at, &ask.seen);
    }
    arena_free(&arena);
    return good;
}

/* The rest of a large value need not be read. */
static void pass_value(struct view_cursor *at)
{
    if (at->offset > 0 && at->key.size < SKV_KEY_SIZE_MAX) {
        enc_u8(&at->key, 0);
        at->offset = 0;
    }
}

static bool look_all(struct restore *r, struct view *v, bool erase)
{
    struct view_cursor at = {0};
    uint32_t shards = skv_cutter_config(view_cutter(v))->shards_count;
    bool good = true;
    for (uint32_t s = 0; good && s < shards; s++) {
        view_cursor_begin(&at, (uint16_t)s, false);
        while (good && !at.last && (erase || r->occupied == 0)) {
            good = look_batch(r, v, &at, erase);
            pass_value(&at);
        }
    }
    buf_free(&at.key);
    return good;
}

static bool nobody_has_it_mounted(struct restore *r)
{
    struct arena arena = {0};
    struct ctl_mounts mounts = {0};
    enum err rc = ask_mounts(r->client, CONNECT_MS, &arena, &mounts);
    bool good =
        rc == ERR_OK || failed("cannot ask who has it mounted", err_text(rc));
    if (good && mounts.mounts_count > 0) {
        const struct ctl_mount *m = &mounts.mounts[0];
        fprintf(stderr,
                "flotilla: the cluster is mounted at %.*s:%.*s: unmount it "
                "(or say --force)\n",
                (int)m->host.size, (const char *)m->host.data,
                (int)m->path.size, (const char *)m->path.data);
        good = false;
    }
    arena_free(&arena);
    return good;
}

/* Empty, or emptied. */
static bool empty_it(struct restore *r, struct view *v)
{
    bool broken_off = r->claim.writing;
    bool good = broken_off || r->force || look_all(r, v, false);
    if (good && r->occupied > 0) {
        return failed("the cluster is not empty",
                      "restore into a new one (or say --force, and what is "
                      "there is deleted)");
    }
    if (good && broken_off) {
        fputs("a restore was broken off here: it begins anew\n", stderr);
    }
    return good && claim_begin_writing(&r->claim) && look_all(r, v, true);
}

/* The view is younger than the claim: it has all that an earlier restore wrote.
 */
static bool make_room(struct restore *r)
{
    if (!claim_take(&r->claim, r->client)) {
        return false;
    }
    struct view *v = view_open(r->client, true, TAKE_MS);
    bool good = v != NULL && empty_it(r, v);
    if (v != NULL) {
        view_close(v);
    }
    return good;
}

/* ---- the command ---- */

static bool input_open(struct restore *r)
{
    struct stat st;
    r->fd = STDIN_FILENO;
    if (r->path != NULL) {
        r->fd = open(r->path, O_RDONLY | O_CLOEXEC);
        if (r->fd < 0) {
            fprintf(stderr, "flotilla: cannot read %s: %s\n", r->path,
                    strerror(errno));
            return false;
        }
    }
    if (fstat(r->fd, &st) == 0 && S_ISREG(st.st_mode)) {
        r->size = (uint64_t)st.st_size;
    }
    return true;
}

static bool fits(struct restore *r)
{
    struct skv_archive_item item;
    uint32_t shards = skv_client_shard_count(r->client);
    reader_begin(r);
    if (!next(r, &item)) {
        return false;
    }
    if (item.head.shard_count != shards) {
        fprintf(stderr,
                "flotilla: %s has %u shards, and the cluster %u: make the "
                "cluster with `flotilla up --shards %u`\n",
                name_of(r), item.head.shard_count, shards,
                item.head.shard_count);
        return false;
    }
    return true;
}

static bool run(struct restore *r)
{
    bool twice = lseek(r->fd, 0, SEEK_CUR) == 0;
    if ((!twice && !copy_open(r)) || !verify(r)) {
        fputs("flotilla: nothing was written\n", stderr);
        return false;
    }
    bool good = fits(r) && (r->force || nobody_has_it_mounted(r)) &&
                make_room(r) && restore_all(r);
    if (r->claim.held && (good || !r->claim.writing)) {
        good = claim_give_back(&r->claim) && good;
    }
    return good;
}

int cmd_restore(int argc, char **argv)
{
    struct cluster_access access = {0};
    static struct restore r;
    r = (struct restore){.fd = -1, .copy = -1};
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&access),
        {"force", 0, ARG_FLAG, &r.force, NULL,
         "delete what is in the cluster, and do not mind mounts"},
        {0}};
    const struct arg_spec spec = {
        .usage = "restore [OPTION...] FILE|-",
        .about =
            "Writes a backup into an empty cluster, of any number of groups "
            "and replicas, and of as\nmany shards as the backup has. It is "
            "checked "
            "before anything is written; damage is named by its\noffset. What "
            "comes through a pipe is kept in $TMPDIR (/var/tmp) meanwhile. "
            "When it was broken\noff, run it again.",
        .options = options,
        .positional_min = 1,
        .positional_max = 1,
    };
    int first = 0;
    int status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    r.path = strcmp(argv[first], "-") == 0 ? NULL : argv[first];
    bool good = input_open(&r);
    if (good) {
        r.client = cluster_connect(&access, "admin", CONNECT_MS);
        good = r.client != NULL && run(&r);
    }
    claim_fini(&r.claim);
    if (r.client != NULL) {
        skv_client_free(r.client);
    }
    if (r.path != NULL && r.fd >= 0) {
        close(r.fd);
    }
    if (good) {
        char size[24];
        fprintf(stderr, "restored %" PRIu64 " keys, %s\n", r.keys,
                progress_size(r.bytes, size));
    }
    skv_archive_reader_fini(&r.reader);
    return good ? EXIT_DONE : EXIT_FAILED;
}
