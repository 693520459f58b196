#include "cmd/moves.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { BAR_SIZE = 24 };

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
