/* flotilla shards --wait: until the shards of one change have arrived. The
 * groups are asked again and again; what counts is what the leader of the group
 * that a shard goes to says. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cmd/health.h"
#include "cmd/moves.h"
#include "cmd/process.h"
#include "cmd/progress.h"

enum {
    ASK_MS = 2000,
    ASK_MIN_MS = 300, /* also at the end: who is alive shall not seem dead */
    LOOK_MS = 200,
    PATIENCE_MS = 60000, /* in which nothing moves */
};

/* What changes as long as anything moves. */
struct mark {
    uint64_t configs, arriving, leaving, stages, bytes, keys;
};

struct watch {
    struct skv_client *client;
    struct ctl_config before, after;
    struct arena arena; /* of the two */
    struct health health;
    uint8_t missing[CTL_SHARDS_MAX];
    uint32_t missing_count, moved_count;
    struct mark mark;
    uint64_t moved_ms; /* when it changed */
    uint64_t began_ms;
    uint32_t timeout_ms, asked_ms;
    struct progress progress;
    bool terminal;
    uint32_t drawn; /* lines */
};

/* ---- what the change moves ---- */

static ctl_gid owner(const struct ctl_config *c, uint32_t shard)
{
    return shard < c->shards_count ? c->shards[shard].gid : 0;
}

static bool moves(const struct watch *w, uint32_t shard)
{
    ctl_gid from = owner(&w->before, shard), to = owner(&w->after, shard);
    return from != 0 && to != 0 && from != to;
}

/* Only groups that give or get shards; by the newest addresses. */
static void add_group(struct watch *w, ctl_gid gid)
{
    const struct ctl_group *g = ctl_config_group(&w->after, gid);
    g = g != NULL ? g : ctl_config_group(&w->before, gid);
    if (g != NULL) {
        health_add(&w->health, g);
    }
}

static enum err begin(struct watch *w, uint64_t number)
{
    enum err rc = ask_config(w->client, number, ASK_MS, &w->arena, &w->after);
    if (rc == ERR_OK && number > 0) {
        rc = ask_config(w->client, number - 1, ASK_MS, &w->arena, &w->before);
    }
    for (uint32_t s = 0; rc == ERR_OK && s < w->after.shards_count; s++) {
        if (moves(w, s)) {
            w->moved_count++;
            add_group(w, owner(&w->before, s));
            add_group(w, owner(&w->after, s));
        }
    }
    return rc;
}

/* ---- how far it is ---- */

static const struct ctl_status *leader_status(const struct watch *w,
                                              ctl_gid gid)
{
    struct health_group g = health_of(&w->health, gid);
    return g.leader != NULL ? &g.leader->status : NULL;
}

static bool is_missing(const struct watch *w, uint32_t shard)
{
    const struct ctl_status *s = leader_status(w, owner(&w->after, shard));
    if (s == NULL || s->config_number < w->after.number) {
        return true;
    }
    if (s->config_number > w->after.number) {
        return false; /* it follows no other before all have arrived */
    }
    return health_waits_for(s, shard);
}

static bool has_left(const struct watch *w, ctl_gid gid)
{
    const struct ctl_status *s = leader_status(w, gid);
    return s != NULL && s->config_number >= w->after.number && s->leaving == 0;
}

/* True: everything is where it should be. */
static bool is_over(struct watch *w)
{
    bool left = true;
    w->missing_count = 0;
    for (uint32_t s = 0; s < w->after.shards_count; s++) {
        w->missing[s] = moves(w, s) && is_missing(w, s);
        w->missing_count += w->missing[s];
    }
    for (uint32_t i = 0; i < w->health.count; i++) {
        left &= has_left(w, w->health.replicas[i].gid);
    }
    return w->missing_count == 0 && left;
}

static void note_movement(struct watch *w)
{
    struct mark mark = {0};
    for (uint32_t i = 0; i < w->health.count; i++) {
        const struct ctl_status *s = &w->health.replicas[i].status;
        mark.configs += s->config_number;
        mark.arriving += s->arriving;
        mark.leaving += s->leaving;
        for (uint32_t k = 0; k < s->moves_count; k++) {
            mark.stages += s->moves[k].stage;
            mark.bytes += s->moves[k].bytes;
            mark.keys += s->moves[k].keys;
        }
    }
    if (memcmp(&mark, &w->mark, sizeof mark) != 0) {
        w->mark = mark;
        w->moved_ms = process_now_ms();
    }
}

/* Bars are drawn over the last ones. */
static void show(struct watch *w)
{
    if (!w->terminal) {
        progress_show(&w->progress, w->moved_count - w->missing_count, 0);
        return;
    }
    if (w->drawn > 0) {
        printf("\033[%uA\033[J", w->drawn);
    }
    w->drawn = 1;
    for (uint32_t i = 0; i < w->health.count; i++) {
        w->drawn += w->health.replicas[i].status.moves_count;
    }
    moves_print(w->health.replicas, w->health.count);
    printf("%u of %u shards have arrived\n", w->moved_count - w->missing_count,
           w->moved_count);
    fflush(stdout);
}

/* ---- the end ---- */

static void say_group(const struct watch *w, ctl_gid gid)
{
    struct health_group g = health_of(&w->health, gid);
    const struct ctl_status *s = leader_status(w, gid);
    if (!health_has_majority(&g)) {
        fprintf(stderr, "  group %u: ", gid);
        health_say(stderr, &w->health, gid);
        fprintf(stderr, "\n");
    } else if (s == NULL) {
        fprintf(stderr, "  group %u: no leader now\n", gid);
    } else if (s->config_number < w->after.number) {
        fprintf(stderr,
                "  group %u is at configuration %" PRIu64
                ": it has to get or give %u shards of that one first\n",
                gid, s->config_number, s->arriving + s->leaving);
    }
}

static void say_shards(const struct watch *w, ctl_gid from, ctl_gid to)
{
    uint8_t set[CTL_SHARDS_MAX] = {0};
    bool some = false;
    for (uint32_t s = 0; s < w->after.shards_count; s++) {
        set[s] = w->missing[s] && owner(&w->before, s) == from &&
                 owner(&w->after, s) == to;
        some |= set[s];
    }
    if (some) {
        fprintf(stderr, "  from group %u to group %u:", from, to);
        health_print_shards(stderr, set, w->after.shards_count);
        fprintf(stderr, "\n");
    }
}

static void say_missing(const struct watch *w)
{
    fprintf(stderr, "flotilla: configuration %" PRIu64 " is made, but ",
            w->after.number);
    if (w->timeout_ms != 0) {
        fprintf(stderr, "within %u ms", w->asked_ms);
    } else {
        fprintf(stderr, "nothing has moved for %u ms:", PATIENCE_MS);
    }
    fprintf(stderr, " %u of %u shards have not arrived:\n", w->missing_count,
            w->moved_count);
    for (uint32_t b = 0; b < w->before.groups_count; b++) {
        for (uint32_t a = 0; a < w->after.groups_count; a++) {
            say_shards(w, w->before.groups[b].gid, w->after.groups[a].gid);
        }
    }
    for (uint32_t i = 0; i < w->health.count; i = health_next(&w->health, i)) {
        say_group(w, w->health.replicas[i].gid);
    }
    fprintf(stderr, "They go on by themselves as soon as they can; `flotilla "
                    "status` shows how far they are.\n");
}

/* ---- the wait ---- */

/* 0: it is over. */
static uint64_t left_ms(const struct watch *w)
{
    bool bound = w->timeout_ms != 0;
    uint64_t until =
        bound ? w->began_ms + w->timeout_ms : w->moved_ms + PATIENCE_MS;
    uint64_t now = process_now_ms();
    return until > now ? until - now : 0;
}

static bool watch_all(struct watch *w)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
    for (;;) {
        uint64_t ms = left_ms(w);
        ms = ms < ASK_MIN_MS ? ASK_MIN_MS : ms;
        health_ask(&w->health, w->client, ms < ASK_MS ? (uint32_t)ms : ASK_MS);
        bool over = is_over(w);
        note_movement(w);
        show(w);
        if (over) {
            return true;
        }
        if (left_ms(w) == 0) {
            say_missing(w);
            return false;
        }
        nanosleep(&pause, NULL);
    }
}

bool moves_wait(struct skv_client *client, uint64_t number, uint32_t timeout_ms,
                uint32_t asked_ms)
{
    struct watch *w = mem_alloc(sizeof *w);
    w->client = client;
    w->timeout_ms = timeout_ms;
    w->asked_ms = asked_ms;
    w->terminal = isatty(STDOUT_FILENO) == 1;
    enum err rc = begin(w, number);
    bool arrived = false;
    if (rc == ERR_OK) {
        progress_begin(&w->progress, "moving", w->moved_count);
        w->progress.unit = "shards";
        w->began_ms = w->moved_ms = process_now_ms();
        arrived = watch_all(w);
    } else {
        fprintf(stderr,
                "flotilla: cannot see whether the shards have arrived: %s; "
                "`flotilla status` shows them\n",
                err_text(rc));
    }
    health_fini(&w->health);
    arena_free(&w->arena);
    mem_free(w);
    return arrived;
}
