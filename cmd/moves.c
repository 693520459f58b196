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

/* What the figures mean: changes are counted behind the copy, and only the copy
 * was counted before. More may be copied than that: it is in use. */
struct parts {
    uint64_t copied, all, changes;
};

static struct parts parts_of(uint8_t stage, uint64_t sent, uint64_t counted)
{
    bool changing = stage >= CTL_MOVE_CHANGES && counted > 0;
    uint64_t copied = changing && sent > counted ? counted : sent;
    return (struct parts){.copied = copied,
                          .all = counted > copied ? counted : copied,
                          .changes = sent - copied};
}

static unsigned percent(const struct ctl_move *m)
{
    if (m->stage >= CTL_MOVE_CHANGES) {
        return 100;
    }
    if (m->stage == CTL_MOVE_COUNT || m->bytes_all == 0) {
        return 0; /* not counted yet */
    }
    struct parts bytes = parts_of(m->stage, m->bytes, m->bytes_all);
    return (unsigned)(bytes.copied * 100 / bytes.all);
}

static void print_parts(const struct ctl_move *m)
{
    struct parts bytes = parts_of(m->stage, m->bytes, m->bytes_all);
    struct parts keys = parts_of(m->stage, m->keys, m->keys_all);
    if (m->stage == CTL_MOVE_COUNT) {
        printf("%" PRIu64 " MiB, %" PRIu64 " keys so far", bytes.all >> 20,
               keys.all);
    } else if (m->stage == CTL_MOVE_COPY) {
        printf("%" PRIu64 " of %" PRIu64 " MiB, %" PRIu64 " of %" PRIu64
               " keys",
               bytes.copied >> 20, bytes.all >> 20, keys.copied, keys.all);
    } else {
        printf("%" PRIu64 " MiB, %" PRIu64 " keys copied, and %" PRIu64
               " MiB, %" PRIu64 " keys of changes",
               bytes.copied >> 20, keys.copied, bytes.changes >> 20,
               keys.changes);
    }
}

static void print_one(const struct ctl_move *m, ctl_gid to)
{
    char bar[BAR_SIZE + 1];
    unsigned done = percent(m) * BAR_SIZE / 100;
    memset(bar, '-', BAR_SIZE);
    memset(bar, '#', done);
    bar[BAR_SIZE] = 0;
    printf("shard %u, group %u to %u [%s] %3u %% %s, ", m->shard, m->from, to,
           bar, percent(m), stage_text(m->stage));
    print_parts(m);
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

static json_t *move_json(const struct ctl_move *m, ctl_gid to)
{
    struct parts bytes = parts_of(m->stage, m->bytes, m->bytes_all);
    struct parts keys = parts_of(m->stage, m->keys, m->keys_all);
    return json_pack(
        "{s:i, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "shard",
        (int)m->shard, "from", (int)m->from, "to", (int)to, "stage",
        stage_text(m->stage), "keys", (json_int_t)keys.copied, "keys_all",
        (json_int_t)keys.all, "changed_keys", (json_int_t)keys.changes, "bytes",
        (json_int_t)bytes.copied, "bytes_all", (json_int_t)bytes.all,
        "changed_bytes", (json_int_t)bytes.changes, "left_ms",
        (json_int_t)m->left_ms);
}

void moves_json(const struct ask_replica *replicas, uint32_t count,
                json_t *array)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct ctl_status *s = &replicas[i].status;
        for (uint32_t k = 0; replicas[i].rc == ERR_OK && k < s->moves_count;
             k++) {
            json_array_append_new(array, move_json(&s->moves[k], s->gid));
        }
    }
}
