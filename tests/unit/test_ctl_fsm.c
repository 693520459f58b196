/* The controller's state machine on plain entries, and its state on a disk. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "shardctrler/fsm_int.h"

#define SECOND ((uint64_t)1000000)
#define START  (1000 * SECOND)

/* ---- a disk in memory, of at most four files ---- */

struct fake_file {
    char name[32];
    struct buf bytes;
};
struct fake_disk {
    struct disk disk;
    struct fake_file files[4];
    int fail_at; /* the n-th call from now fails; 0: none */
};
struct disk_file {
    struct fake_disk *disk;
    struct fake_file *file;
};

static enum err fake_step(struct fake_disk *d)
{
    return d->fail_at > 0 && --d->fail_at == 0 ? ERR_IO : ERR_OK;
}

static struct fake_file *fake_find(struct fake_disk *d, const char *name)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(d->files[i].name, name) == 0) {
            return &d->files[i];
        }
    }
    return NULL;
}

static enum err fake_open(struct disk *disk, const char *path, bool create,
                          struct disk_file **out)
{
    struct fake_disk *d = (struct fake_disk *)(void *)disk;
    if (fake_step(d) != ERR_OK) {
        return ERR_IO;
    }
    struct fake_file *f = fake_find(d, path);
    if (f == NULL && !create) {
        return ERR_NOTFOUND;
    }
    if (f == NULL) {
        f = fake_find(d, "");
        snprintf(f->name, sizeof f->name, "%s", path);
    }
    *out = mem_alloc(sizeof **out);
    **out = (struct disk_file){.disk = d, .file = f};
    return ERR_OK;
}

static void fake_close(struct disk_file *f)
{
    mem_free(f);
}

static enum err fake_size(struct disk_file *f, uint64_t *out)
{
    *out = f->file->bytes.size;
    return fake_step(f->disk);
}

static enum err fake_read(struct disk_file *f, uint64_t offset, void *to,
                          size_t size)
{
    if (offset + size > f->file->bytes.size) {
        return ERR_CORRUPT;
    }
    memcpy(to, f->file->bytes.data + offset, size);
    return fake_step(f->disk);
}

static enum err fake_write(struct disk_file *f, uint64_t offset,
                           const struct slice *parts, uint32_t part_count)
{
    assert_int_equal(offset, f->file->bytes.size);
    for (uint32_t i = 0; i < part_count; i++) {
        buf_append(&f->file->bytes, parts[i].data, parts[i].size);
    }
    return fake_step(f->disk);
}

static enum err fake_truncate(struct disk_file *f, uint64_t size)
{
    assert_int_equal(size, 0);
    buf_clear(&f->file->bytes);
    return fake_step(f->disk);
}

static enum err fake_sync(struct disk_file *f)
{
    return fake_step(f->disk);
}

static enum err fake_rename(struct disk *disk, const char *from, const char *to)
{
    struct fake_disk *d = (struct fake_disk *)(void *)disk;
    if (fake_step(d) != ERR_OK) {
        return ERR_IO;
    }
    struct fake_file *old = fake_find(d, to);
    struct fake_file *f = fake_find(d, from);
    if (old != NULL) {
        buf_free(&old->bytes);
        old->name[0] = '\0';
    }
    snprintf(f->name, sizeof f->name, "%s", to);
    return ERR_OK;
}

static enum err fake_sync_dir(struct disk *disk, const char *path)
{
    (void)path;
    return fake_step((struct fake_disk *)(void *)disk);
}

static const struct disk_ops fake_ops = {
    .open = fake_open,
    .close = fake_close,
    .size = fake_size,
    .read = fake_read,
    .write = fake_write,
    .truncate = fake_truncate,
    .sync = fake_sync,
    .rename = fake_rename,
    .sync_dir = fake_sync_dir,
};

static void fake_disk_init(struct fake_disk *d)
{
    *d = (struct fake_disk){.disk = {.ops = &fake_ops}};
}

static void fake_disk_fini(struct fake_disk *d)
{
    for (int i = 0; i < 4; i++) {
        buf_free(&d->files[i].bytes);
    }
}

/* ---- commands ---- */

struct machine {
    struct fake_disk disk;
    struct ctl_fsm *fsm;
    struct buf reply;
};

static void machine_open(struct machine *m)
{
    assert_int_equal(ctl_fsm_new(&m->disk.disk, &m->fsm), ERR_OK);
}

static void machine_init(struct machine *m)
{
    *m = (struct machine){0};
    fake_disk_init(&m->disk);
    machine_open(m);
}

static void machine_fini(struct machine *m)
{
    ctl_fsm_free(m->fsm);
    buf_free(&m->reply);
    fake_disk_fini(&m->disk);
}

static void apply(struct machine *m, enum raft_entry_type type,
                  struct slice command)
{
    struct rsm_entry e = {
        .index = m->fsm->state.index + 1,
        .term = 1 + m->fsm->state.index / 100,
        .type = type,
        .command = command,
        .reply = &m->reply,
    };
    buf_clear(&m->reply);
    assert_int_equal(m->fsm->fsm.ops->apply(&m->fsm->fsm, &e, 1), ERR_OK);
}

static void command(struct machine *m, enum ctl_command_kind kind,
                    uint64_t stamp_us, const struct buf *body)
{
    struct buf b = {0};
    struct ctl_command c = {
        .kind = (uint8_t)kind, .stamp_us = stamp_us, .body = buf_slice(body)};
    ctl_command_encode(&b, &c);
    apply(m, RAFT_ENTRY_COMMAND, buf_slice(&b));
    buf_free(&b);
}

static void init(struct machine *m, uint32_t shards)
{
    struct buf b = {0};
    struct ctl_init i = {.shard_count = shards};
    ctl_init_encode(&b, &i);
    command(m, CTL_COMMAND_INIT, START, &b);
    buf_free(&b);
}

static struct ctl_changed change(struct machine *m, uint64_t stamp_us,
                                 const struct ctl_change *c)
{
    struct buf b = {0};
    struct ctl_changed out;
    ctl_change_encode(&b, c);
    command(m, CTL_COMMAND_CHANGE, stamp_us, &b);
    buf_free(&b);
    assert_int_equal(ctl_changed_decode(buf_slice(&m->reply), NULL, &out),
                     ERR_OK);
    return out;
}

static struct ctl_changed join(struct machine *m, uint64_t stamp_us,
                               uint64_t session, uint64_t sequence, ctl_gid gid)
{
    struct ctl_server s = {.id = 1, .address = slice_text("127.0.0.1:7001")};
    struct ctl_group g = {.gid = gid, .servers = &s, .servers_count = 1};
    struct ctl_change c = {.session = session,
                           .sequence = sequence,
                           .kind = CTL_JOIN,
                           .join = &g,
                           .join_count = 1};
    return change(m, stamp_us, &c);
}

static struct ctl_changed leave(struct machine *m, uint64_t stamp_us,
                                uint64_t session, uint64_t sequence,
                                ctl_gid gid)
{
    struct ctl_owner o = {.gid = gid};
    struct ctl_change c = {.session = session,
                           .sequence = sequence,
                           .kind = CTL_LEAVE,
                           .leave = &o,
                           .leave_count = 1};
    return change(m, stamp_us, &c);
}

static uint32_t mount(struct machine *m, uint64_t stamp_us, uint64_t session,
                      bool gone)
{
    struct buf b = {0};
    struct ctl_mount c = {.session = session,
                          .host = slice_text("host"),
                          .path = slice_text("/mnt"),
                          .gone = gone};
    ctl_mount_encode(&b, &c);
    command(m, CTL_COMMAND_MOUNT, stamp_us, &b);
    buf_free(&b);
    assert_int_equal(m->reply.size, 4);
    return get_u32(m->reply.data);
}

static struct buf bytes_of(const struct machine *m)
{
    struct buf b = {0};
    ctl_state_encode(&m->fsm->state, &b);
    return b;
}

static void assert_same(struct buf *a, struct buf *b)
{
    assert_int_equal(a->size, b->size);
    assert_memory_equal(a->data, b->data, a->size);
    buf_free(a);
    buf_free(b);
}

/* ---- tests ---- */

/* Wrong if a retry made a second configuration, or got another answer. */
static void a_duplicate_is_answered_from_the_table(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    init(&m, 16);
    struct ctl_changed a = join(&m, START, 7, 1, 1);
    struct ctl_changed b = join(&m, START, 7, 1, 1);
    assert_int_equal(a.rc, ERR_OK);
    assert_int_equal(a.number, 1);
    assert_int_equal(b.rc, ERR_OK);
    assert_int_equal(b.number, 1);
    assert_int_equal(m.fsm->state.history.count, 1);
    /* A refusal is an answer too. */
    assert_int_equal(join(&m, START, 7, 2, 1).rc, ERR_EXISTS);
    assert_int_equal(leave(&m, START, 8, 1, 5).rc, ERR_NOTFOUND);
    assert_int_equal(join(&m, START, 8, 2, 5).rc, ERR_OK);
    assert_int_equal(join(&m, START, 7, 2, 1).rc, ERR_EXISTS);
    /* Older than the last, or in the middle of an unknown session. */
    assert_int_equal(join(&m, START, 7, 1, 9).rc, ERR_EXPIRED);
    assert_int_equal(join(&m, START, 99, 2, 9).rc, ERR_EXPIRED);
    assert_int_equal(m.fsm->state.history.count, 2);
    machine_fini(&m);
}

/* Wrong if the second leader's INIT forgot what the first had founded. */
static void the_shard_count_is_set_once(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    assert_int_equal(join(&m, START, 7, 1, 1).rc, ERR_BUSY);
    struct buf out = {0};
    assert_int_equal(ctl_state_query(&m.fsm->state, CTL_LATEST, &out),
                     ERR_BUSY);
    init(&m, 16);
    assert_int_equal(join(&m, START, 7, 1, 1).rc, ERR_OK);
    init(&m, 32);
    assert_int_equal(m.fsm->state.history.newest.shards_count, 16);
    assert_int_equal(m.fsm->state.history.count, 1);
    machine_fini(&m);
}

/* Wrong if a difference lost a group, a shard, a weight or the rate, or a
 * keyframe was off by one: every old number must read as it was when it was
 * new. */
static void every_old_configuration_can_be_read(void **state)
{
    (void)state;
    struct machine m;
    struct buf seen[201] = {{0}};
    struct rng r = {.state = 3};
    machine_init(&m);
    init(&m, 64);
    uint64_t sequence = 0;
    while (m.fsm->state.history.count < 200) {
        ctl_gid gid = (ctl_gid)rng_between(&r, 1, 9);
        sequence++;
        if (rng_chance(&r, 500)) {
            (void)join(&m, START, 7, sequence, gid);
        } else if (rng_chance(&r, 500)) {
            (void)leave(&m, START, 7, sequence, gid);
        } else if (rng_chance(&r, 500)) {
            bool weigh = rng_chance(&r, 500);
            struct ctl_change c = {
                .session = 7,
                .sequence = sequence,
                .kind = weigh ? CTL_WEIGH : CTL_LIMIT,
                .weigh = {.gid = gid,
                          .weight = (uint32_t)rng_between(&r, 1, 4)},
                .limit = rng_between(&r, 1, 4) << 20,
            };
            (void)change(&m, START, &c);
        } else {
            struct ctl_change c = {
                .session = 7,
                .sequence = sequence,
                .kind = CTL_MOVE,
                .move_shard = (uint32_t)rng_below(&r, 64),
                .move_gid = gid,
            };
            (void)change(&m, START, &c);
        }
        struct buf *now = &seen[m.fsm->state.history.count];
        buf_clear(now);
        ctl_config_encode(now, &m.fsm->state.history.newest);
    }
    for (uint64_t n = 0; n <= 200; n++) {
        struct buf out = {0};
        assert_int_equal(ctl_state_query(&m.fsm->state, n, &out), ERR_OK);
        if (seen[n].size == 0) {
            assert_int_equal(n, 0);
            buf_append(&seen[n], out.data, out.size);
        }
        assert_same(&out, &seen[n]);
    }
    struct buf out = {0};
    assert_int_equal(ctl_state_query(&m.fsm->state, 201, &out), ERR_NOTFOUND);
    machine_fini(&m);
}

/* Wrong if time came from anywhere but the stamps, or a stamp could take the
 * clock back. */
static void the_silent_are_dropped_by_the_replicated_clock(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    init(&m, 16);
    assert_int_equal(mount(&m, START, 1, false), ERR_OK);
    assert_int_equal(mount(&m, START + 40 * SECOND, 2, false), ERR_OK);
    assert_int_equal(m.fsm->state.mount_count, 2);
    assert_int_equal(mount(&m, START + 70 * SECOND, 2, false), ERR_OK);
    assert_int_equal(m.fsm->state.mount_count, 1);
    assert_int_equal(m.fsm->state.mounts[0].mount.session, 2);
    assert_int_equal(mount(&m, START, 3, false), ERR_OK);
    assert_int_equal(m.fsm->state.clock_us, START + 70 * SECOND);
    assert_int_equal(m.fsm->state.mounts[1].heard_us, START + 70 * SECOND);
    assert_int_equal(mount(&m, START + 71 * SECOND, 2, true), ERR_OK);
    assert_int_equal(m.fsm->state.mount_count, 1);
    assert_int_equal(join(&m, START + 71 * SECOND, 7, 1, 1).rc, ERR_OK);
    uint64_t later = START + 71 * SECOND + CTL_SESSION_IDLE_US + 2 * SECOND;
    assert_int_equal(join(&m, later, 8, 1, 2).rc, ERR_OK);
    assert_int_equal(m.fsm->state.session_count, 1);
    /* The retry of a forgotten change is refused, not made again. */
    assert_int_equal(leave(&m, later, 7, 2, 1).rc, ERR_EXPIRED);
    machine_fini(&m);
}

/* Wrong if the tables grew past their bounds, or the full one dropped a session
 * whose clerk may still retry. */
static void every_table_is_bounded(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    init(&m, 4);
    for (uint64_t i = 1; i <= CTL_MOUNTS_MAX; i++) {
        assert_int_equal(mount(&m, START, i, false), ERR_OK);
    }
    assert_int_equal(mount(&m, START, CTL_MOUNTS_MAX + 1, false), ERR_BUSY);
    assert_int_equal(mount(&m, START, 5, false), ERR_OK);
    for (uint64_t i = 1; i <= CTL_SESSIONS_MAX; i++) {
        (void)leave(&m, START + i, i, 1, 1);
    }
    uint64_t over = CTL_SESSIONS_MAX + 1;
    assert_int_equal(leave(&m, START + over, over, 1, 1).rc, ERR_BUSY);
    uint64_t later = START + over + CTL_SESSION_KEEP_US;
    assert_int_equal(leave(&m, later, over, 1, 1).rc, ERR_NOTFOUND);
    assert_int_equal(m.fsm->state.session_count, CTL_SESSIONS_MAX);
    assert_int_equal(m.fsm->state.sessions[0].session, 2);
    machine_fini(&m);
}

static void random_history(struct machine *m, uint64_t seed, uint32_t steps)
{
    struct rng r = {.state = seed};
    uint64_t sequences[4] = {0};
    for (uint32_t i = 0; i < steps; i++) {
        uint64_t stamp = START + rng_below(&r, 300) * SECOND;
        uint64_t s = rng_below(&r, 4);
        ctl_gid gid = (ctl_gid)rng_between(&r, 1, 6);
        switch (rng_below(&r, 4)) {
        case 0: (void)join(m, stamp, s + 1, ++sequences[s], gid); break;
        case 1: (void)leave(m, stamp, s + 1, ++sequences[s], gid); break;
        case 2: (void)mount(m, stamp, rng_between(&r, 1, 9), false); break;
        default: apply(m, RAFT_ENTRY_NOOP, slice_of(NULL, 0));
        }
    }
}

static void the_same_input_gives_the_same_bytes(void **state)
{
    (void)state;
    struct machine a;
    struct machine b;
    machine_init(&a);
    machine_init(&b);
    init(&a, 16);
    init(&b, 16);
    random_history(&a, 5, 400);
    random_history(&b, 5, 400);
    struct buf x = bytes_of(&a);
    struct buf y = bytes_of(&b);
    assert_same(&x, &y);
    machine_fini(&a);
    machine_fini(&b);
}

struct bytes_sink {
    struct snap_sink sink;
    struct buf bytes;
};
static enum err sink_write(struct snap_sink *sink, struct slice bytes)
{
    struct bytes_sink *s = (struct bytes_sink *)(void *)sink;
    buf_append(&s->bytes, bytes.data, bytes.size);
    return ERR_OK;
}

struct bytes_source {
    struct snap_source source;
    struct slice left;
};
static enum err source_read(struct snap_source *source, void *to,
                            size_t size_max, size_t *size)
{
    struct bytes_source *s = (struct bytes_source *)(void *)source;
    *size = s->left.size < size_max ? s->left.size : size_max;
    *size = *size < 777 ? *size : 777;
    if (*size > 0) {
        memcpy(to, s->left.data, *size);
    }
    s->left = slice_of(s->left.data + *size, s->left.size - *size);
    return ERR_OK;
}

/* Wrong if a snapshot took in what was applied after it began, or the receiver
 * went on from another state: then the next entries differ. */
static void a_snapshot_restores_the_state_to_the_byte(void **state)
{
    (void)state;
    struct machine a;
    struct machine b;
    machine_init(&a);
    machine_init(&b);
    init(&a, 16);
    random_history(&a, 9, 300);
    struct rsm_fsm *fa = &a.fsm->fsm;
    struct rsm_fsm *fb = &b.fsm->fsm;
    void *view = NULL;
    raft_index index = a.fsm->state.index;
    raft_term term = a.fsm->state.term;
    struct buf frozen = bytes_of(&a);
    assert_int_equal(fa->ops->snap_begin(fa, &view), ERR_OK);
    random_history(&a, 10, 20);
    struct bytes_sink sink = {.sink = {.write = sink_write}};
    assert_int_equal(fa->ops->snap_read(fa, view, &sink.sink), ERR_OK);
    fa->ops->snap_end(fa, view);
    struct bytes_source source = {.source = {.read = source_read},
                                  .left = buf_slice(&sink.bytes)};
    assert_int_equal(fb->ops->snap_install(fb, &source.source, index, term),
                     ERR_OK);
    struct buf got = bytes_of(&b);
    assert_same(&got, &frozen);
    raft_term durable_term = 0;
    assert_int_equal(fb->ops->durable(fb, &durable_term), index);
    assert_int_equal(durable_term, term);
    /* Damaged, or under another label: the old state stands. */
    struct buf before = bytes_of(&b);
    source.left = buf_slice(&sink.bytes);
    assert_int_equal(fb->ops->snap_install(fb, &source.source, index + 1, term),
                     ERR_CORRUPT);
    for (size_t at = 0; at < sink.bytes.size; at += 13) {
        sink.bytes.data[at] ^= 0x10;
        source.left = buf_slice(&sink.bytes);
        assert_int_equal(fb->ops->snap_install(fb, &source.source, index, term),
                         ERR_CORRUPT);
        sink.bytes.data[at] ^= 0x10;
    }
    struct buf after = bytes_of(&b);
    assert_same(&before, &after);
    buf_free(&sink.bytes);
    machine_fini(&a);
    machine_fini(&b);
}

/* Wrong if bytes that pass the checksum are believed. */
static void a_sane_checksum_over_nonsense_is_refused(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    init(&m, 16);
    random_history(&m, 11, 60);
    struct buf good = bytes_of(&m);
    uint32_t accepted = 0;
    for (size_t at = 24; at < good.size; at++) {
        struct buf bad = {0};
        buf_append(&bad, good.data, good.size);
        bad.data[at] ^= 0xff;
        set_u32(bad.data + 8,
                crc32c(0, slice_of(bad.data + 24, bad.size - 24)));
        struct ctl_state s;
        ctl_state_init(&s);
        if (ctl_state_decode(buf_slice(&bad), &s) == ERR_OK) {
            struct buf out = {0};
            accepted++;
            assert_int_equal(ctl_state_query(&s, s.history.count, &out),
                             ERR_OK);
            assert_int_equal(ctl_config_check(&s.history.newest), ERR_OK);
            buf_free(&out);
        }
        ctl_state_fini(&s);
        buf_free(&bad);
    }
    assert_true(accepted < good.size);
    buf_free(&good);
    /* Out of order, a binary search would miss what is there. */
    struct ctl_session first = m.fsm->state.sessions[0];
    m.fsm->state.sessions[0] = m.fsm->state.sessions[1];
    m.fsm->state.sessions[1] = first;
    struct buf unsorted = bytes_of(&m);
    struct ctl_state s;
    ctl_state_init(&s);
    assert_int_equal(ctl_state_decode(buf_slice(&unsorted), &s), ERR_CORRUPT);
    ctl_state_fini(&s);
    buf_free(&unsorted);
    machine_fini(&m);
}

/* Wrong if a failed step of a checkpoint lost the one before it. */
static void a_checkpoint_that_fails_leaves_the_old_one(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    init(&m, 16);
    random_history(&m, 1, 50);
    struct rsm_fsm *f = &m.fsm->fsm;
    assert_int_equal(f->ops->checkpoint(f), ERR_OK);
    struct buf old = bytes_of(&m);
    random_history(&m, 2, 50);
    struct buf new = bytes_of(&m);
    for (int nth = 1;; nth++) {
        m.disk.fail_at = nth;
        enum err rc = f->ops->checkpoint(f);
        bool reached = m.disk.fail_at == 0;
        m.disk.fail_at = 0;
        struct fake_file *file = fake_find(&m.disk, CTL_STATE_FILE);
        struct slice now = buf_slice(&file->bytes);
        if (!reached) {
            assert_int_equal(rc, ERR_OK);
            assert_int_equal(slice_compare(now, buf_slice(&new)), 0);
            break;
        }
        assert_int_equal(rc, ERR_IO);
        assert_true(slice_compare(now, buf_slice(&old)) == 0 ||
                    slice_compare(now, buf_slice(&new)) == 0);
    }
    ctl_fsm_free(m.fsm);
    machine_open(&m);
    struct buf again = bytes_of(&m);
    assert_same(&again, &new);
    buf_free(&old);
    machine_fini(&m);
}

static void a_damaged_state_file_is_not_started_from(void **state)
{
    (void)state;
    struct machine m;
    machine_init(&m);
    init(&m, 16);
    assert_int_equal(m.fsm->fsm.ops->checkpoint(&m.fsm->fsm), ERR_OK);
    struct fake_file *file = fake_find(&m.disk, CTL_STATE_FILE);
    file->bytes.data[file->bytes.size - 1] ^= 1;
    struct ctl_fsm *out = NULL;
    assert_int_equal(ctl_fsm_new(&m.disk.disk, &out), ERR_CORRUPT);
    assert_null(out);
    machine_fini(&m);
}

/* Wrong if bytes of the log were believed: whatever they are, nothing breaks,
 * and every replica does the same. */
static void any_bytes_may_be_in_a_command(void **state)
{
    (void)state;
    struct machine m;
    struct rng r = {.state = 77};
    machine_init(&m);
    init(&m, 16);
    for (int i = 0; i < 20000; i++) {
        uint8_t bytes[64];
        size_t size = rng_below(&r, sizeof bytes);
        for (size_t k = 0; k < size; k++) {
            bytes[k] = (uint8_t)(rng_next(&r) % 4);
        }
        apply(&m, RAFT_ENTRY_COMMAND, slice_of(bytes, size));
    }
    assert_int_equal(ctl_config_check(&m.fsm->state.history.newest), ERR_OK);
    machine_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_duplicate_is_answered_from_the_table),
        cmocka_unit_test(the_shard_count_is_set_once),
        cmocka_unit_test(every_old_configuration_can_be_read),
        cmocka_unit_test(the_silent_are_dropped_by_the_replicated_clock),
        cmocka_unit_test(every_table_is_bounded),
        cmocka_unit_test(the_same_input_gives_the_same_bytes),
        cmocka_unit_test(a_snapshot_restores_the_state_to_the_byte),
        cmocka_unit_test(a_sane_checksum_over_nonsense_is_refused),
        cmocka_unit_test(a_checkpoint_that_fails_leaves_the_old_one),
        cmocka_unit_test(a_damaged_state_file_is_not_started_from),
        cmocka_unit_test(any_bytes_may_be_in_a_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
