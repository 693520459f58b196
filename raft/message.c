/* The bytes of a message (docs/wire.md). Integers are little-endian.
 *
 *   u8   type                         u64  conflict_term   XTerm
 *   u64  from                         u64  conflict_index  XIndex
 *   u64  to                           u64  last_index      XLen
 *   u64  term                         u64  read_round
 *   u64  log_index                    u32  entry_count, and for each:
 *   u64  log_term                         u64  term
 *   u64  commit                           u8   type
 *   u64  match                            u32  size, and the bytes
 *   u8   flags: 1 reject, 2 transfer, 4 lease, 8 full
 *
 * Entry i has the index log_index + 1 + i.
 *
 * What a field means in an APPEND_REPLY: accepted: `log_index`, up to where the
 * follower's log, in memory, is the leader's; `match`, up to where it is on its
 * disk. Refused: `log_index` is the prevLogIndex that did not fit, and
 * conflict_term, conflict_index and last_index are the labs' XTerm, XIndex and
 * XLen (paper 5.3, end). */
#include "base/codec.h"
#include "raft/raft_int.h"

enum {
    FLAG_REJECT = 1,
    FLAG_TRANSFER = 2,
    FLAG_LEASE = 4,
    FLAG_FULL = 8,
    FLAGS_ALL = 15
};

/* Up to `entry_count`: eleven integers, the type and the flags. */
enum { HEAD_SIZE = 11 * 8 + 2 };

/* The least an entry takes: a count that cannot fit is refused before memory
 * is taken for it. */
enum { ENTRY_SIZE_MIN = 8 + 1 + 4 };

/* Entries that take this much of their message, on the average, keep it in
 * memory; shorter ones are copied, as a struct for each would be too much. */
enum { PART_SIZE_MIN = 2 << 10 };

static bool entries_sane(const struct raft_msg *m)
{
    raft_term before = m->log_term;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        const struct raft_entry *e = &m->entries[i];
        if (e->term < before || e->term > m->term || e->term == 0 ||
            e->index != m->log_index + 1 + i) {
            return false;
        }
        if (e->type != RAFT_ENTRY_COMMAND && e->type != RAFT_ENTRY_NOOP &&
            e->type != RAFT_ENTRY_CONF) {
            return false;
        }
        struct raft_conf conf;
        if (e->type == RAFT_ENTRY_CONF &&
            (raft_conf_decode(bytes_slice(e->data), &conf) != ERR_OK ||
             conf.voter_count == 0)) {
            return false;
        }
        before = e->term;
    }
    return true;
}

bool raft_msg_sane(const struct raft_msg *m)
{
    if (m->type < RAFT_MSG_PREVOTE || m->type > RAFT_MSG_TIMEOUT_NOW) {
        return false;
    }
    if (m->from == 0 || m->to == 0 || m->from == m->to || m->term == 0 ||
        m->term > RAFT_TERM_MAX) {
        return false;
    }
    if (m->entry_count == 0) {
        return true;
    }
    return m->type == RAFT_MSG_APPEND &&
           m->entry_count <= RAFT_MSG_ENTRIES_MAX &&
           m->log_index < UINT64_MAX - RAFT_MSG_ENTRIES_MAX && entries_sane(m);
}

static uint8_t *put(uint8_t *at, uint64_t v)
{
    set_u64(at, v);
    return at + sizeof v;
}

/* Most messages are a head alone: one look at the room for all of it. */
static void encode_head(struct buf *b, const struct raft_msg *msg)
{
    uint8_t *at = buf_extend(b, HEAD_SIZE);
    *at++ = (uint8_t)msg->type;
    at = put(at, msg->from);
    at = put(at, msg->to);
    at = put(at, msg->term);
    at = put(at, msg->log_index);
    at = put(at, msg->log_term);
    at = put(at, msg->commit);
    at = put(at, msg->match);
    *at++ =
        (uint8_t)((msg->reject ? FLAG_REJECT : 0) |
                  (msg->transfer ? FLAG_TRANSFER : 0) |
                  (msg->lease ? FLAG_LEASE : 0) | (msg->full ? FLAG_FULL : 0));
    at = put(at, msg->conflict_term);
    at = put(at, msg->conflict_index);
    at = put(at, msg->last_index);
    at = put(at, msg->read_round);
    CHECK(at == b->data + b->size);
    enc_u32(b, msg->entry_count);
}

uint32_t raft_msg_encode_cut(struct buf *b, const struct raft_msg *msg,
                             size_t long_size, struct raft_cut *cuts)
{
    uint32_t count = 0;
    encode_head(b, msg);
    for (uint32_t i = 0; i < msg->entry_count; i++) {
        struct bytes *data = msg->entries[i].data;
        struct slice bytes = bytes_slice(data);
        enc_u64(b, msg->entries[i].term);
        enc_u8(b, (uint8_t)msg->entries[i].type);
        enc_u32(b, (uint32_t)bytes.size);
        if (bytes.size >= long_size) {
            cuts[count++] = (struct raft_cut){.at = b->size, .data = data};
        } else {
            buf_append(b, bytes.data, bytes.size);
        }
    }
    return count;
}

void raft_msg_encode(struct buf *b, const struct raft_msg *msg)
{
    (void)raft_msg_encode_cut(b, msg, SIZE_MAX, NULL);
}

static struct bytes *data_of(struct bytes *whole, struct slice data)
{
    if (data.size == 0) {
        return NULL;
    }
    return whole != NULL ? bytes_part(whole, data) : bytes_copy(data);
}

static uint64_t take(const uint8_t **at)
{
    uint64_t v = get_u64(*at);
    *at += sizeof v;
    return v;
}

static void decode_entries(struct dec *d, struct bytes *whole, struct arena *a,
                           struct raft_msg *m)
{
    uint32_t count = dec_u32(d);
    if (count > RAFT_MSG_ENTRIES_MAX || count > dec_left(d) / ENTRY_SIZE_MIN) {
        d->failed = true;
        return;
    }
    if (count == 0) {
        return;
    }
    if (whole != NULL && whole->size / count < PART_SIZE_MIN) {
        whole = NULL;
    }
    m->entries = arena_array(a, count, sizeof *m->entries);
    for (uint32_t i = 0; i < count; i++) {
        raft_term term = dec_u64(d);
        uint8_t type = dec_u8(d);
        struct slice data = dec_bytes(d);
        if (d->failed) {
            return;
        }
        m->entries[m->entry_count++] = (struct raft_entry){
            .term = term,
            .index = m->log_index + 1 + i,
            .type = (enum raft_entry_type)type,
            .data = data_of(whole, data),
        };
    }
}

/* `whole`: what the entries become parts of; NULL: they are copied. */
static enum err decode(struct slice from, struct bytes *whole, struct arena *a,
                       struct raft_msg *msg)
{
    struct raft_msg m = {0};
    struct dec d = dec_of(from);
    const uint8_t *at = dec_raw(&d, HEAD_SIZE).data;
    if (d.failed) {
        return ERR_CORRUPT;
    }
    m.type = (enum raft_msg_type) * at++;
    m.from = take(&at);
    m.to = take(&at);
    m.term = take(&at);
    m.log_index = take(&at);
    m.log_term = take(&at);
    m.commit = take(&at);
    m.match = take(&at);
    uint8_t flags = *at++;
    m.reject = (flags & FLAG_REJECT) != 0;
    m.transfer = (flags & FLAG_TRANSFER) != 0;
    m.lease = (flags & FLAG_LEASE) != 0;
    m.full = (flags & FLAG_FULL) != 0;
    m.conflict_term = take(&at);
    m.conflict_index = take(&at);
    m.last_index = take(&at);
    m.read_round = take(&at);
    decode_entries(&d, whole, a, &m);
    if (dec_done(&d) != ERR_OK || (flags & ~FLAGS_ALL) || !raft_msg_sane(&m)) {
        raft_msg_release(&m);
        return ERR_CORRUPT;
    }
    *msg = m;
    return ERR_OK;
}

enum err raft_msg_decode(struct slice from, struct arena *a,
                         struct raft_msg *msg)
{
    return decode(from, NULL, a, msg);
}

enum err raft_msg_decode_parts(struct bytes *from, struct arena *a,
                               struct raft_msg *msg)
{
    return decode(bytes_slice(from), from, a, msg);
}

void raft_msg_release(struct raft_msg *msg)
{
    for (uint32_t i = 0; i < msg->entry_count; i++) {
        bytes_unref(msg->entries[i].data);
    }
    msg->entries = NULL;
    msg->entry_count = 0;
}
