/* All configurations, compactly. A cluster of 128 shards takes a kilobyte a
 * configuration in full; as a difference it is some tens of bytes a move. */
#include "shardctrler/fsm_int.h"

#include <string.h>

#include "base/check.h"

MSG_CODEC(ctl_moved, CTL_MOVED_FIELDS)
MSG_CODEC(ctl_delta, CTL_DELTA_FIELDS)

enum { KEYFRAME_EVERY = 64 };

static void config_zero(struct arena *a, uint32_t shard_count,
                        struct ctl_config *out)
{
    *out = (struct ctl_config){.shards_count = shard_count};
    out->shards = arena_array(a, shard_count, sizeof *out->shards);
    out->groups = arena_array(a, 0, sizeof *out->groups);
}

/* Not there, or with other servers: then it is removed and added. */
static bool is_changed(const struct ctl_config *c, const struct ctl_group *g)
{
    const struct ctl_group *there = ctl_config_group(c, g->gid);
    return there == NULL || !ctl_group_same(there, g);
}

static void delta_between(struct arena *a, const struct ctl_config *from,
                          const struct ctl_config *to, struct ctl_delta *d)
{
    *d = (struct ctl_delta){0};
    d->removed = arena_array(a, from->groups_count, sizeof *d->removed);
    d->added = arena_array(a, to->groups_count, sizeof *d->added);
    d->moved = arena_array(a, to->shards_count, sizeof *d->moved);
    for (uint32_t i = 0; i < from->groups_count; i++) {
        if (is_changed(to, &from->groups[i])) {
            d->removed[d->removed_count++].gid = from->groups[i].gid;
        }
    }
    for (uint32_t i = 0; i < to->groups_count; i++) {
        if (is_changed(from, &to->groups[i])) {
            d->added[d->added_count++] = to->groups[i];
        }
    }
    d->weights = to->weights;
    d->weights_count = to->weights_count;
    d->move_rate = to->move_rate;
    for (uint32_t i = 0; i < to->shards_count; i++) {
        if (from->shards[i].gid != to->shards[i].gid) {
            d->moved[d->moved_count++] = (struct ctl_moved){
                .shard = (uint16_t)i, .gid = to->shards[i].gid};
        }
    }
}

static bool is_removed(const struct ctl_delta *d, ctl_gid gid)
{
    for (uint32_t i = 0; i < d->removed_count; i++) {
        if (d->removed[i].gid == gid) {
            return true;
        }
    }
    return false;
}

/* Both lists are sorted by gid; a broken order shows in ctl_config_check(). */
static void merge_groups(struct arena *a, const struct ctl_config *from,
                         const struct ctl_delta *d, struct ctl_config *to)
{
    uint32_t added = 0;
    to->groups =
        arena_array(a, from->groups_count + d->added_count, sizeof *to->groups);
    for (uint32_t i = 0; i < from->groups_count; i++) {
        ctl_gid gid = from->groups[i].gid;
        while (added < d->added_count && d->added[added].gid < gid) {
            to->groups[to->groups_count++] = d->added[added++];
        }
        if (!is_removed(d, gid)) {
            to->groups[to->groups_count++] = from->groups[i];
        }
    }
    while (added < d->added_count) {
        to->groups[to->groups_count++] = d->added[added++];
    }
}

/* `to` shares the groups' servers and the weights with `from` and `d`. */
static enum err delta_apply(struct arena *a, const struct ctl_config *from,
                            const struct ctl_delta *d, uint64_t number,
                            struct ctl_config *to)
{
    *to = (struct ctl_config){.number = number,
                              .shards_count = from->shards_count,
                              .weights = d->weights,
                              .weights_count = d->weights_count,
                              .move_rate = d->move_rate};
    merge_groups(a, from, d, to);
    to->shards = arena_array(a, to->shards_count, sizeof *to->shards);
    memcpy(to->shards, from->shards, to->shards_count * sizeof *to->shards);
    for (uint32_t i = 0; i < d->moved_count; i++) {
        if (d->moved[i].shard >= to->shards_count) {
            return ERR_CORRUPT;
        }
        to->shards[d->moved[i].shard].gid = d->moved[i].gid;
    }
    return ERR_OK;
}

static bool is_keyframe(uint64_t number)
{
    return number % KEYFRAME_EVERY == 0;
}

void ctl_history_init(struct ctl_history *h, uint32_t shard_count)
{
    *h = (struct ctl_history){.shard_count = shard_count};
    config_zero(&h->arena, shard_count, &h->newest);
}

void ctl_history_fini(struct ctl_history *h)
{
    buf_free(&h->bytes);
    mem_free(h->offsets);
    arena_free(&h->arena);
    *h = (struct ctl_history){0};
}

static void offset_push(struct ctl_history *h, size_t offset)
{
    if (h->count == h->capacity) {
        h->capacity = h->capacity == 0 ? 64 : h->capacity * 2;
        h->offsets = mem_resize(h->offsets, h->capacity * sizeof *h->offsets);
    }
    h->offsets[h->count++] = offset;
}

static void newest_set(struct ctl_history *h, const struct ctl_config *next)
{
    struct arena old = h->arena;
    h->arena = (struct arena){0};
    ctl_config_copy(&h->arena, next, &h->newest);
    arena_free(&old);
}

void ctl_history_append(struct ctl_history *h, const struct ctl_config *next)
{
    CHECK(next->number == h->count + 1);
    CHECK(next->shards_count == h->shard_count);
    struct arena a = {0};
    struct ctl_config zero;
    struct ctl_delta d;
    config_zero(&a, h->shard_count, &zero);
    delta_between(&a, is_keyframe(next->number) ? &zero : &h->newest, next, &d);
    offset_push(h, h->bytes.size);
    ctl_delta_encode(&h->bytes, &d);
    newest_set(h, next);
    arena_free(&a);
}

/* The next delta from the cursor, on top of `last`. */
static enum err load_one(struct arena *a, struct dec *d,
                         const struct ctl_config *last, struct ctl_config *next)
{
    struct ctl_delta delta;
    struct ctl_config zero;
    uint64_t number = last->number + 1;
    ctl_delta_decode_from(d, a, &delta);
    if (d->failed) {
        return ERR_CORRUPT;
    }
    config_zero(a, last->shards_count, &zero);
    enum err rc = delta_apply(a, is_keyframe(number) ? &zero : last, &delta,
                              number, next);
    return rc == ERR_OK ? ctl_config_check(next) : rc;
}

enum err ctl_history_load(struct ctl_history *h, uint32_t shard_count,
                          struct slice bytes)
{
    if (shard_count == 0 || shard_count > CTL_SHARDS_MAX) {
        return ERR_CORRUPT;
    }
    ctl_history_init(h, shard_count);
    struct dec d = dec_of(bytes);
    while (dec_left(&d) > 0) {
        struct arena a = {0};
        struct ctl_config next;
        size_t offset = (size_t)(d.at - bytes.data);
        enum err rc = load_one(&a, &d, &h->newest, &next);
        if (rc != ERR_OK) {
            arena_free(&a);
            ctl_history_fini(h);
            return ERR_CORRUPT;
        }
        offset_push(h, offset);
        newest_set(h, &next);
        arena_free(&a);
    }
    buf_append(&h->bytes, bytes.data, bytes.size);
    return ERR_OK;
}

void ctl_history_at(const struct ctl_history *h, uint64_t number,
                    struct arena *a, struct ctl_config *out)
{
    CHECK(number <= h->count);
    uint64_t at = number - number % KEYFRAME_EVERY;
    at = at == 0 ? 1 : at;
    struct ctl_config config;
    config_zero(a, h->shard_count, &config);
    config.number = at - 1;
    if (number > 0) {
        size_t offset = h->offsets[at - 1];
        struct dec d =
            dec_of(slice_of(h->bytes.data + offset, h->bytes.size - offset));
        for (; at <= number; at++) {
            struct ctl_config next;
            CHECK(load_one(a, &d, &config, &next) == ERR_OK);
            config = next;
        }
    }
    config.number = number;
    *out = config;
}
