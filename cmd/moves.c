#include "cmd/moves.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR_SIZE = 24, ASK_MS = 2000, LOOK_MS = 200, REPLICAS_MAX = 1024 };

static const char *stage_text(uint8_t stage)
{
    switch (stage) {
    case CTL_MOVE_COUNT: return "counting";
    case CTL_MOVE_COPY: return "copying";
    case CTL_MOVE_CHANGES: return "catching up";
    case CTL_MOVE_TAIL: return "handing over";
    default: return "?";
    }
}

static unsigned percent(const struct ctl_move *m)
{
    if (m->stage >= CTL_MOVE_CHANGES) {
        return 100;
    }
    if (m->bytes_all == 0) {
        return 0; /* not counted yet */
    }
    /* More may be copied than was counted: it is in use. */
    uint64_t all = m->bytes_all > m->bytes ? m->bytes_all : m->bytes;
    return (unsigned)(m->bytes * 100 / all);
}

static void print_one(const struct ctl_move *m, ctl_gid to)
{
    char bar[BAR_SIZE + 1];
    unsigned done = percent(m) * BAR_SIZE / 100;
    memset(bar, '-', BAR_SIZE);
    memset(bar, '#', done);
    bar[BAR_SIZE] = 0;
    printf("shard %u, group %u to %u [%s] %3u %% %s, %" PRIu64 " of %" PRIu64
           " MiB, %" PRIu64 " of %" PRIu64 " keys",
           m->shard, m->from, to, bar, percent(m), stage_text(m->stage),
           m->bytes >> 20, m->bytes_all >> 20, m->keys, m->keys_all);
    if (m->left_ms > 0) {
        printf(", %" PRIu64 " s left", (m->left_ms + 999) / 1000);
    }
}

void moves_print(const struct ask_replica *replicas, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct ctl_status *s = &replicas[i].status;
        for (uint32_t k = 0; replicas[i].rc == ERR_OK && k < s->moves_count;
             k++) {
            print_one(&s->moves[k], s->gid);
            printf("\n");
        }
    }
}

void moves_json(const struct ask_replica *replicas, uint32_t count,
                json_t *array)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct ctl_status *s = &replicas[i].status;
        for (uint32_t k = 0; replicas[i].rc == ERR_OK && k < s->moves_count;
             k++) {
            const struct ctl_move *m = &s->moves[k];
            json_array_append_new(
                array,
                json_pack(
                    "{s:i, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I}", "shard",
                    (int)m->shard, "from", (int)m->from, "to", (int)s->gid,
                    "stage", stage_text(m->stage), "keys", (json_int_t)m->keys,
                    "keys_all", (json_int_t)m->keys_all, "bytes",
                    (json_int_t)m->bytes, "bytes_all", (json_int_t)m->bytes_all,
                    "left_ms", (json_int_t)m->left_ms));
        }
    }
}

/* ---- waiting ---- */

struct watch {
    struct skv_client *client;
    struct ask_replica *replicas;
    uint32_t count;
    uint64_t number;
};

static void add_group(struct watch *w, const struct ctl_group *g)
{
    for (uint32_t i = 0; i < w->count; i++) {
        if (w->replicas[i].gid == g->gid) {
            return;
        }
    }
    for (uint32_t i = 0; i < g->servers_count && w->count < REPLICAS_MAX; i++) {
        struct slice address = g->servers[i].address;
        struct ask_replica *r = &w->replicas[w->count];
        if (address.size < NET_ADDRESS_SIZE_MAX) {
            *r = (struct ask_replica){.gid = g->gid, .id = g->servers[i].id};
            memcpy(r->address, address.data, address.size);
            w->count++;
        }
    }
}

/* Those of the configuration and of the one before: who leaves gives, too. */
static enum err find_replicas(struct watch *w)
{
    enum err rc = ERR_OK;
    for (uint64_t back = 0; rc == ERR_OK && back < 2 && back < w->number;
         back++) {
        struct arena a = {0};
        struct ctl_config c = {0};
        rc = ask_config(w->client, w->number - back, ASK_MS, &a, &c);
        for (uint32_t g = 0; rc == ERR_OK && g < c.groups_count; g++) {
            add_group(w, &c.groups[g]);
        }
        arena_free(&a);
    }
    return rc;
}

/* A group has settled when its leader says so. */
static bool group_settled(const struct watch *w, ctl_gid gid)
{
    for (uint32_t i = 0; i < w->count; i++) {
        const struct ask_replica *r = &w->replicas[i];
        if (r->gid == gid && r->rc == ERR_OK && r->status.leader == r->id &&
            r->status.config_number >= w->number && r->status.arriving == 0 &&
            r->status.leaving == 0) {
            return true;
        }
    }
    return false;
}

static bool all_settled(const struct watch *w)
{
    for (uint32_t i = 0; i < w->count; i++) {
        if (!group_settled(w, w->replicas[i].gid)) {
            return false;
        }
    }
    return true;
}

static uint32_t lines_of(const struct watch *w)
{
    uint32_t lines = 0;
    for (uint32_t i = 0; i < w->count; i++) {
        lines +=
            w->replicas[i].rc == ERR_OK ? w->replicas[i].status.moves_count : 0;
    }
    return lines;
}

/* Bars are drawn over the last ones. */
static void draw(const struct watch *w, uint32_t *drawn)
{
    if (*drawn > 0) {
        printf("\033[%uA\033[J", *drawn);
    }
    moves_print(w->replicas, w->count);
    fflush(stdout);
    *drawn = lines_of(w);
}

static void watch_all(struct watch *w)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
    bool terminal = isatty(STDOUT_FILENO);
    uint32_t drawn = 0;
    for (bool settled = false; !settled;) {
        struct arena a = {0};
        ask_statuses(w->client, w->replicas, w->count, ASK_MS, &a);
        settled = all_settled(w);
        if (terminal) {
            draw(w, &drawn);
        }
        for (uint32_t i = 0; i < w->count; i++) {
            w->replicas[i].status = (struct ctl_status){0};
        }
        arena_free(&a);
        if (!settled) {
            nanosleep(&pause, NULL);
        }
    }
}

enum err moves_wait(struct skv_client *client, uint64_t number)
{
    struct watch w = {.client = client, .number = number};
    w.replicas = mem_array(REPLICAS_MAX, sizeof *w.replicas);
    enum err rc = find_replicas(&w);
    if (rc == ERR_OK) {
        watch_all(&w);
    }
    mem_free(w.replicas);
    return rc;
}
