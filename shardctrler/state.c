/* The stored form of the controller's state; a snapshot has the same bytes.
 *
 *   offset  size  field
 *        0     8  magic     "FLOTCTL1"
 *        8     4  crc       CRC-32C of the body
 *       12     4  reserved  zero; a reader refuses anything else
 *       16     8  size      of the body
 *       24     -  body      struct ctl_stored
 *
 * Integers are little-endian. */
#include "shardctrler/fsm_int.h"

#include <string.h>

#include "base/check.h"

#define CTL_STORED_FIELDS(F)                                                   \
    F(U64, index)                                                              \
    F(U64, term)                                                               \
    F(U64, clock_us)                                                           \
    F(U32, shard_count)                                                        \
    F(BYTES, history) /* ctl_delta, one after the other */                     \
    F(LIST, ctl_session, sessions, CTL_SESSIONS_MAX)                           \
    F(LIST, ctl_mounted, mounts, CTL_MOUNTS_MAX)
MSG_STRUCT(ctl_stored, CTL_STORED_FIELDS);

MSG_CODEC(ctl_session, CTL_SESSION_FIELDS)
MSG_CODEC(ctl_mounted, CTL_MOUNTED_FIELDS)
MSG_CODEC(ctl_stored, CTL_STORED_FIELDS)

#define STATE_MAGIC "FLOTCTL1"
enum {
    MAGIC_SIZE = 8,
    CRC_AT = 8,
    RESERVED_AT = 12,
    SIZE_AT = 16,
    HEADER_SIZE = 24
};

struct slice ctl_text_own(struct slice from)
{
    uint8_t *copy = mem_alloc(from.size);
    if (from.size > 0) {
        memcpy(copy, from.data, from.size);
    }
    return slice_of(copy, from.size);
}

void ctl_text_disown(struct slice own)
{
    mem_free((void *)(uintptr_t)own.data);
}

void ctl_state_init(struct ctl_state *s)
{
    *s = (struct ctl_state){0};
}

/* `items` with room for `count`; grows by doubling. */
static void *grown(void *items, uint32_t *capacity, uint32_t count, size_t size)
{
    if (count <= *capacity) {
        return items;
    }
    uint32_t more = *capacity == 0 ? 16 : 2 * *capacity;
    *capacity = more > count ? more : count;
    return mem_resize(items, *capacity * size);
}

void ctl_state_reserve(struct ctl_state *s, uint32_t sessions, uint32_t mounts)
{
    CHECK(sessions <= CTL_SESSIONS_MAX && mounts <= CTL_MOUNTS_MAX);
    s->sessions =
        grown(s->sessions, &s->session_capacity, sessions, sizeof *s->sessions);
    s->mounts = grown(s->mounts, &s->mount_capacity, mounts, sizeof *s->mounts);
}

void ctl_state_fini(struct ctl_state *s)
{
    for (uint32_t i = 0; i < s->mount_count; i++) {
        ctl_text_disown(s->mounts[i].mount.host);
        ctl_text_disown(s->mounts[i].mount.path);
    }
    ctl_history_fini(&s->history);
    mem_free(s->sessions);
    mem_free(s->mounts);
    *s = (struct ctl_state){0};
}

void ctl_state_encode(const struct ctl_state *s, struct buf *out)
{
    size_t start = out->size;
    memset(buf_extend(out, HEADER_SIZE), 0, HEADER_SIZE);
    struct ctl_stored stored = {
        .index = s->index,
        .term = s->term,
        .clock_us = s->clock_us,
        .shard_count = s->shard_count,
        .history = buf_slice(&s->history.bytes),
        .sessions = s->sessions,
        .sessions_count = s->session_count,
        .mounts = s->mounts,
        .mounts_count = s->mount_count,
    };
    ctl_stored_encode(out, &stored);
    uint8_t *head = out->data + start;
    size_t size = out->size - start - HEADER_SIZE;
    memcpy(head, STATE_MAGIC, MAGIC_SIZE);
    set_u32(head + CRC_AT, crc32c(0, slice_of(head + HEADER_SIZE, size)));
    set_u64(head + SIZE_AT, size);
}

static enum err body_of(struct slice from, struct slice *body)
{
    if (from.size < HEADER_SIZE || from.size > CTL_STATE_SIZE_MAX ||
        memcmp(from.data, STATE_MAGIC, MAGIC_SIZE) != 0 ||
        get_u32(from.data + RESERVED_AT) != 0 ||
        get_u64(from.data + SIZE_AT) != from.size - HEADER_SIZE) {
        return ERR_CORRUPT;
    }
    *body = slice_of(from.data + HEADER_SIZE, from.size - HEADER_SIZE);
    bool good = crc32c(0, *body) == get_u32(from.data + CRC_AT);
    return good ? ERR_OK : ERR_CORRUPT;
}

/* A checksum proves that these are the writer's bytes, not that the writer was
 * sane: a binary search over an unsorted table would loop or miss. */
static enum err stored_check(const struct ctl_stored *stored)
{
    for (uint32_t i = 1; i < stored->sessions_count; i++) {
        if (stored->sessions[i - 1].session >= stored->sessions[i].session) {
            return ERR_CORRUPT;
        }
    }
    for (uint32_t i = 0; i < stored->mounts_count; i++) {
        const struct ctl_mounted *m = &stored->mounts[i];
        if (ctl_mount_check(&m->mount) != ERR_OK ||
            (i > 0 && m[-1].mount.session >= m->mount.session)) {
            return ERR_CORRUPT;
        }
    }
    bool blank = stored->shard_count == 0;
    return blank && stored->history.size > 0 ? ERR_CORRUPT : ERR_OK;
}

static void state_take(struct ctl_state *s, const struct ctl_stored *stored,
                       const struct ctl_history *history)
{
    ctl_state_fini(s);
    ctl_state_init(s);
    s->index = stored->index;
    s->term = stored->term;
    s->clock_us = stored->clock_us;
    s->shard_count = stored->shard_count;
    s->history = *history;
    ctl_state_reserve(s, stored->sessions_count, stored->mounts_count);
    s->session_count = stored->sessions_count;
    for (uint32_t i = 0; i < s->session_count; i++) {
        s->sessions[i] = stored->sessions[i];
    }
    s->mount_count = stored->mounts_count;
    for (uint32_t i = 0; i < s->mount_count; i++) {
        struct ctl_mounted *m = &s->mounts[i];
        *m = stored->mounts[i];
        m->mount.host = ctl_text_own(m->mount.host);
        m->mount.path = ctl_text_own(m->mount.path);
    }
}

enum err ctl_state_decode(struct slice from, struct ctl_state *s)
{
    struct slice body;
    struct arena a = {0};
    struct ctl_stored stored;
    struct ctl_history history = {0};
    enum err rc = body_of(from, &body);
    if (rc == ERR_OK) {
        rc = ctl_stored_decode(body, &a, &stored);
    }
    if (rc == ERR_OK) {
        rc = stored_check(&stored);
    }
    if (rc == ERR_OK && stored.shard_count > 0) {
        rc = ctl_history_load(&history, stored.shard_count, stored.history);
    }
    if (rc == ERR_OK) {
        state_take(s, &stored, &history);
    }
    arena_free(&a);
    return rc;
}
