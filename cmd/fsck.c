/* flotilla fsck --kv: do the replicas of each group hold the same? Each sums up
 * its view of the store at one index of the log, batch by batch; those that
 * differ from most others are named (docs/backup.md). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cmd/args.h"
#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "cmd/progress.h"
#include "cmd/view.h"

enum {
    CONNECT_MS = 10000,
    TAKE_MS = 60000,
    LOOK_MS = 15000,
    OWN_SHARD = 0xffff, /* the group's own records */
};

struct check {
    struct view *view;
    const struct skv_cut_group *group;
    uint32_t position; /* of the group */
    bool absent[CTL_SERVERS_MAX];
    uint32_t said[CTL_SERVERS_MAX]; /* the shard + 1 that it was named for */
    uint64_t index;
    uint64_t batches;
    struct progress *progress;
    bool differs, incomplete;
};

static void print_key(struct slice key)
{
    for (size_t i = 0; i < key.size && i < 24; i++) {
        printf("%02x", key.data[i]);
    }
}

static void say_differs(struct check *c, uint32_t server,
                        const struct view_cursor *at, const char *what)
{
    c->differs = true;
    if (c->said[server] == at->shard + 1u) {
        return;
    }
    c->said[server] = at->shard + 1u;
    progress_end(c->progress);
    printf("group %u: g%u-%" PRIu64 " at %s %s ", c->group->gid, c->group->gid,
           c->group->servers[server].id, c->group->servers[server].address,
           what);
    if (at->shard == OWN_SHARD) {
        printf("the group's own records");
    } else {
        printf("shard %u", at->shard);
    }
    printf(", at or after key ");
    print_key(buf_slice(&at->key));
    printf("\n");
    fflush(stdout);
}

static void say_absent(struct check *c, uint32_t server, enum err rc)
{
    c->absent[server] = true;
    c->incomplete = true;
    progress_end(c->progress);
    printf("group %u: g%u-%" PRIu64 " at %s was not compared: %s\n",
           c->group->gid, c->group->gid, c->group->servers[server].id,
           c->group->servers[server].address,
           rc == ERR_NOTFOUND ? "it has no view (started meanwhile, or too far "
                                "behind)"
                              : err_text(rc));
    fflush(stdout);
}

static bool same(const struct skv_seen *a, const struct skv_seen *b)
{
    return a->crc == b->crc && a->last == b->last && a->index == b->index;
}

/* The position of an answer that most others equal; `count` when none came. */
static uint32_t majority(const struct view_ask *asks, uint32_t count)
{
    uint32_t best = count;
    uint32_t best_votes = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t votes = 0;
        for (uint32_t k = 0; k < count; k++) {
            votes += asks[i].rc == ERR_OK && asks[k].rc == ERR_OK &&
                     same(&asks[i].seen, &asks[k].seen);
        }
        if (votes > best_votes) {
            best = i;
            best_votes = votes;
        }
    }
    return best;
}

static bool judge(struct check *c, struct view_cursor *at,
                  const struct view_ask *asks, uint32_t count)
{
    uint32_t good = majority(asks, count);
    if (good == count) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (asks[i].rc == ERR_CORRUPT) {
            say_differs(c, asks[i].server, at, "cannot read its");
        } else if (asks[i].rc != ERR_OK) {
            say_absent(c, asks[i].server, asks[i].rc);
        } else if (!same(&asks[i].seen, &asks[good].seen)) {
            say_differs(c, asks[i].server, at, "differs from most others in");
        }
    }
    c->index = asks[good].seen.index;
    view_cursor_move(at, &asks[good].seen);
    return true;
}

/* One batch, at every replica that answers. */
static bool check_batch(struct check *c, struct view_cursor *at)
{
    struct arena arena = {0};
    struct view_ask asks[CTL_SERVERS_MAX];
    uint32_t count = 0;
    for (uint32_t s = 0; s < c->group->server_count; s++) {
        if (!c->absent[s]) {
            asks[count++] =
                (struct view_ask){.group = c->position,
                                  .server = s,
                                  .look = {.what = SKV_LOOK_SUM,
                                           .shard = at->shard,
                                           .key = buf_slice(&at->key),
                                           .offset = at->offset}};
        }
    }
    view_ask(c->view, asks, count, LOOK_MS, &arena);
    bool good = judge(c, at, asks, count);
    c->batches++;
    arena_free(&arena);
    return good;
}

static bool check_shard(struct check *c, uint16_t shard)
{
    struct view_cursor at = {0};
    bool good = true;
    view_cursor_begin(&at, shard, true);
    while (good && !at.last) {
        good = check_batch(c, &at);
    }
    buf_free(&at.key);
    return good;
}

static void check_group(struct check *c, uint32_t shards)
{
    if (c->group->absent) {
        printf("group %u: was not compared: no leader of it answers\n",
               c->group->gid);
        c->incomplete = true;
        return;
    }
    bool good = true;
    for (uint32_t s = 0; good && s < shards; s++) {
        good = check_shard(c, (uint16_t)s);
        progress_show(c->progress, c->position * shards + s, c->batches);
    }
    good = good && check_shard(c, OWN_SHARD);
    progress_end(c->progress);
    uint32_t absent = 0;
    for (uint32_t i = 0; i < c->group->server_count; i++) {
        absent += c->absent[i];
    }
    if (!good) {
        printf("group %u: no replica answers\n", c->group->gid);
        c->incomplete = true;
    } else if (!c->differs) {
        printf("group %u: OK: %u of %u replicas hold the same at index %" PRIu64
               "\n",
               c->group->gid, c->group->server_count - absent,
               c->group->server_count, c->index);
    }
}

/* The last line, so that nobody takes what was compared for all there is. */
static int verdict(bool differs, uint32_t incomplete, uint32_t count)
{
    if (incomplete > 0) {
        printf("INCOMPLETE: %u of %u groups were not compared in full; "
               "`flotilla status` says why: check again when all their "
               "replicas run\n",
               incomplete, count);
    }
    return differs ? EXIT_UNWELL : incomplete > 0 ? EXIT_FAILED : EXIT_DONE;
}

static int check_all(struct view *v)
{
    struct progress progress;
    uint32_t count = 0;
    const struct skv_cut_group *groups =
        skv_cutter_groups(view_cutter(v), &count);
    uint32_t shards = skv_cutter_config(view_cutter(v))->shards_count;
    bool differs = false;
    uint32_t incomplete = 0;
    progress_begin(&progress, "fsck", (uint64_t)shards * count);
    progress.unit = "shards";
    for (uint32_t g = 0; g < count; g++) {
        struct check c = {.view = v,
                          .group = &groups[g],
                          .position = g,
                          .progress = &progress};
        check_group(&c, shards);
        differs |= c.differs;
        incomplete += c.incomplete;
    }
    return verdict(differs, incomplete, count);
}

int cmd_fsck(int argc, char **argv)
{
    struct cluster_access access = {0};
    bool kv = false;
    const struct arg_option options[] = {
        CLUSTER_ACCESS_OPTIONS(&access),
        {"kv", 0, ARG_FLAG, &kv, NULL,
         "compare what the replicas of each group hold"},
        {0}};
    const struct arg_spec spec = {
        .usage = "fsck --kv [OPTION...]",
        .about = "Compares the keys and values of the replicas of each group, "
                 "at one index of its log, while\nthe cluster serves. Groups "
                 "and replicas that do not answer are named, the others "
                 "compared.\nExits with 3 when some differ, 1 when none does "
                 "and some were not compared (INCOMPLETE), 0 when\nall hold "
                 "the same.",
        .options = options,
    };
    int first = 0;
    int status = 0;
    if (!args_parse(&spec, argc, argv, &first, &status)) {
        return status;
    }
    if (!kv) {
        fputs("flotilla: say what to check: fsck --kv\n", stderr);
        return EXIT_USAGE;
    }
    struct skv_client *client = cluster_connect(&access, "admin", CONNECT_MS);
    if (client == NULL) {
        return EXIT_FAILED;
    }
    struct view *v = view_open(client, false, TAKE_MS);
    status = v != NULL ? check_all(v) : EXIT_FAILED;
    if (v != NULL) {
        view_close(v);
    }
    skv_client_free(client);
    return status;
}
