/* What the state machine of the labs' Raft rows keeps of an entry, and what a
 * peer runs with: the same in the simulator and in a process. */
#include "tests/labs/group.h"

#include "base/check.h"
#include "base/codec.h"
#include "raft/storage/wal_int.h"

enum {
    GROUP = 1,
    /* What an entry of 8 bytes counts in rsm/checkpoint.c. */
    ENTRY_SIZE = 64 + LAB_COMMAND_SIZE,
    /* Small: a log fills its segment with zeros ahead of what it writes. */
    SEGMENT_SIZE = 32768,
    SEGMENT_SIZE_SMALL = 4096,
};

/* ---- a list of entries ---- */

void lab_log_add(struct lab_log *log, struct lab_entry entry)
{
    if (log->count == log->capacity) {
        log->capacity = log->capacity == 0 ? 64 : 2 * log->capacity;
        log->entries =
            mem_resize(log->entries, log->capacity * sizeof *log->entries);
    }
    log->entries[log->count++] = entry;
}

void lab_log_copy(struct lab_log *to, const struct lab_log *from)
{
    to->count = 0;
    for (raft_index i = 0; i < from->count; i++) {
        lab_log_add(to, from->entries[i]);
    }
    to->term = from->term;
}

void lab_log_fini(struct lab_log *log)
{
    mem_free(log->entries);
    *log = (struct lab_log){0};
}

struct lab_entry lab_entry_of(const struct rsm_entry *e)
{
    struct lab_entry entry = {.type = e->type, .value = e->term};
    if (e->type == RAFT_ENTRY_COMMAND) {
        entry.value = get_u64(e->command.data);
        entry.crc = crc32c(0, e->command);
    }
    return entry;
}

enum err lab_log_read(struct snap_source *source, struct lab_log *log)
{
    for (;;) {
        struct lab_entry entry;
        size_t got = 0;
        enum err rc = source->read(source, &entry, sizeof entry, &got);
        if (rc != ERR_OK || got == 0) {
            return rc;
        }
        if (got != sizeof entry) {
            return ERR_CORRUPT;
        }
        lab_log_add(log, entry);
    }
}

struct bytes *lab_command(uint64_t value, size_t size)
{
    CHECK(size >= LAB_COMMAND_SIZE);
    struct bytes *b = bytes_new(size);
    struct rng rng = {value};
    for (size_t i = LAB_COMMAND_SIZE; i < size; i++) {
        b->data[i] = (uint8_t)rng_next(&rng); /* nothing to compress */
    }
    set_u64(b->data, value);
    return b;
}

/* ---- messages ---- */

bool lab_raft_is_reply(struct slice body)
{
    uint8_t type = body.data[0];
    return type == RAFT_MSG_PREVOTE_REPLY || type == RAFT_MSG_VOTE_REPLY ||
           type == RAFT_MSG_APPEND_REPLY;
}

/* Not that the leader's term is old. */
bool lab_raft_is_refusal(struct slice body)
{
    struct arena arena = {0};
    struct raft_msg m;
    if (body.data[0] != RAFT_MSG_APPEND_REPLY ||
        raft_msg_decode(body, &arena, &m) != ERR_OK) {
        return false;
    }
    return m.reject && m.log_index > 0;
}

raft_term lab_raft_vote_term(struct slice body)
{
    struct arena arena = {0};
    struct raft_msg m;
    if (body.data[0] != RAFT_MSG_VOTE_REPLY ||
        raft_msg_decode(body, &arena, &m) != ERR_OK) {
        return 0;
    }
    return m.reject ? 0 : m.term;
}

/* ---- how much the log is ---- */

static size_t beginning_size(const struct raft_status *status)
{
    struct buf conf = {0};
    raft_conf_encode(&conf, &status->conf);
    size_t size = WAL_HEAD_SIZE + wal_record_size(sizeof(raft_id)) +
                  wal_record_size(conf.size);
    buf_free(&conf);
    return size;
}

size_t lab_log_size(const struct rsm *rsm)
{
    const struct raft *raft = rsm_raft(rsm);
    struct raft_status status;
    raft_status(raft, &status);
    uint32_t count = 0;
    const struct raft_entry *entries =
        raft_entries(raft, status.first_index, status.last_index, UINT32_MAX,
                     SIZE_MAX, &count);
    /* Of those that are on disk alone the heads count: it is more. */
    size_t size =
        beginning_size(&status) +
        (status.first_index - 1 - status.snapshot_index) * wal_record_size(0);
    for (uint32_t i = 0; i < count; i++) {
        size += wal_record_size(bytes_slice(entries[i].data).size);
    }
    return size;
}

static enum err add_size(void *arg, const struct snap_id *id,
                         struct slice packed)
{
    *(size_t *)arg += sizeof *id + packed.size;
    return ERR_OK;
}

size_t lab_stream_size(struct slice snapshot)
{
    size_t size = 0;
    struct snap_cutter *c = snap_cutter_new(0, add_size, &size);
    struct snap_sink *sink = snap_cutter_sink(c);
    CHECK(sink->write(sink, snapshot) == ERR_OK);
    CHECK(snap_cutter_finish(c) == ERR_OK);
    snap_cutter_free(c);
    return size;
}

static void count_file(void *arg, const char *name)
{
    (void)name;
    ++*(uint32_t *)arg;
}

uint32_t lab_wal_files(struct disk *disk)
{
    uint32_t count = 0;
    enum err rc = disk->ops->list(disk, "wal", count_file, &count);
    return rc == ERR_OK ? count : 0;
}

/* ---- what a peer runs with ---- */

struct rsm_config lab_rsm_config(unsigned options, uint64_t seed)
{
    struct rsm_config config = {
        .group = GROUP,
        .no_noop = (options & LAB_EXACT) != 0 || seed % 2 != 0,
        .checkpoint_ms_max = UINT32_MAX,
        .checkpoint_size_max = SIZE_MAX,
        .wal_segment_size = SEGMENT_SIZE,
    };
    bool slow = (options & LAB_SLOW) != 0 && seed / 2 % 2 == 0;
    if (slow && (options & LAB_UNRELIABLE) == 0) {
        config.append_size_max = 1; /* where messages overtake: too dear */
    }
    if ((options & LAB_SNAPSHOTS) != 0) {
        config.checkpoint_size_max = LAB_SNAPSHOT_INTERVAL * ENTRY_SIZE;
        /* As the labs, nothing; or as what ships, a little. */
        bool keep = seed / 2 % 2 == 0;
        config.log_keep_size = keep ? LAB_SNAPSHOT_INTERVAL * ENTRY_SIZE : 1;
        config.wal_segment_size = SEGMENT_SIZE_SMALL;
        config.log_hold_size = 1; /* who is behind is sent a snapshot */
    }
    return config;
}
