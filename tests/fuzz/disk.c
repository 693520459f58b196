/* What a replica's disk holds, and what a snapshot brings: the log's segments,
 * snapshot streams. A checksum keeps a fuzzer out, so some inputs have theirs
 * put right first: the first byte says so. */
#include <stdio.h>
#include <string.h>

#include "raft/storage/pack.h"
#include "raft/storage/snapfile.h"
#include "raft/storage/wal_int.h"
#include "shardkv/archive.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/faultdisk.h"

enum { AS_IT_IS = 0, CHECKSUMS_PUT_RIGHT = 1 };

/* ---- the log ----
 *
 * Input: u8 mode, then parts: the first is segment 1, and so on. */

enum { SEGMENT_SIZE = 4096, SEGMENTS_MAX = 3 };

/* Bit by bit, so that it shares nothing with base/crc32c.c. */
static uint32_t slow_crc(uint32_t crc, const uint8_t *at, size_t size)
{
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        for (int k = 0; k < 8; k++) {
            crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1)));
        }
    }
    return ~crc;
}

/* Of the place and the head, without its two checks; the lower half of it is
 * one of them. */
static uint32_t head_crc(const uint8_t *record, uint64_t sequence,
                         uint64_t offset)
{
    static const uint8_t no_check[2];
    uint8_t place[16];
    set_u64(place, sequence);
    set_u64(place + 8, offset);
    uint32_t crc = slow_crc(slow_crc(0, place, 16), record + 4, 6);
    return slow_crc(slow_crc(crc, no_check, 2), record + 12, 20);
}

static uint32_t record_crc(const uint8_t *record, size_t size,
                           uint64_t sequence, uint64_t offset)
{
    return slow_crc(head_crc(record, sequence, offset),
                    record + WAL_RECORD_HEAD_SIZE, size - WAL_RECORD_HEAD_SIZE);
}

static void put_right(struct buf *segment, uint64_t sequence)
{
    uint8_t *p = segment->data;
    if (segment->size < WAL_HEAD_SIZE) {
        return;
    }
    set_u32(p + 36, slow_crc(0, p, 36));
    size_t at = WAL_HEAD_SIZE;
    while (segment->size - at >= WAL_RECORD_HEAD_SIZE) {
        size_t size = wal_record_size(get_u32(p + at + 4));
        if (size > segment->size - at || get_u64(p + at + 4) == 0) {
            return;
        }
        uint32_t head = head_crc(p + at, sequence, at);
        p[at + 10] = (uint8_t)head;
        p[at + 11] = (uint8_t)(head >> 8);
        set_u32(p + at, record_crc(p + at, size, sequence, at));
        at += size;
    }
}

static void put_segment(struct disk *disk, uint64_t sequence, struct slice s)
{
    struct disk_file *file = NULL;
    char path[WAL_PATH_SIZE];
    snprintf(path, sizeof path, "wal/%016llx.wal",
             (unsigned long long)sequence);
    enum err rc = disk->ops->mkdir(disk, "wal");
    CHECK(rc == ERR_OK);
    rc = disk->ops->open(disk, path, true, &file);
    CHECK(rc == ERR_OK);
    rc = disk->ops->write(file, 0, &s, 1);
    CHECK(rc == ERR_OK);
    disk->ops->close(file);
}

/* Is there a record of this entry whose checksum holds? */
static bool is_recorded(struct slice s, uint64_t sequence,
                        const struct raft_entry *e)
{
    struct slice data = bytes_slice(e->data);
    size_t size = wal_record_size(data.size);
    for (size_t at = WAL_HEAD_SIZE; s.size >= size && at <= s.size - size;
         at += 8) {
        const uint8_t *p = s.data + at;
        if (get_u32(p + 4) == data.size && get_u64(p + 24) == e->index &&
            get_u64(p + 16) == e->term &&
            get_u32(p) == record_crc(p, size, sequence, at) &&
            slice_compare(slice_of(p + WAL_RECORD_HEAD_SIZE, data.size),
                          data) == 0) {
            return true;
        }
    }
    return false;
}

struct segments {
    struct buf bytes[SEGMENTS_MAX];
    uint32_t count;
};

static void check_recorded(const struct segments *s,
                           const struct wal_recovery *found)
{
    for (uint32_t i = 0; i < found->entry_count; i++) {
        bool recorded = false;
        for (uint32_t k = 0; k < s->count; k++) {
            recorded |=
                is_recorded(buf_slice(&s->bytes[k]), k + 1, &found->entries[i]);
        }
        CHECK(recorded);
        CHECK(i == 0 ||
              found->entries[i].index == found->entries[i - 1].index + 1);
    }
}

/* What opened can be written to, and opens again with the same and the new. */
static void check_usable(struct disk *disk, struct wal *w,
                         const struct wal_recovery *found)
{
    raft_index last = found->start_index + found->entry_count;
    if (last > UINT64_MAX - 2) {
        wal_close(w);
        return;
    }
    struct raft_entry e = {.term = found->hard_state.term,
                           .index = last + 1,
                           .type = RAFT_ENTRY_NOOP};
    enum err rc = wal_append(w, NULL, &e, 1);
    CHECK(rc == ERR_OK);
    wal_close(w);
    struct wal_recovery again;
    rc = wal_open(disk, "wal", SEGMENT_SIZE, 0, &w, &again);
    CHECK(rc == ERR_OK);
    CHECK(again.entry_count == found->entry_count + 1);
    CHECK(again.hard_state.vote == found->hard_state.vote);
    wal_recovery_free(&again);
    wal_close(w);
}

static void segments_read(struct segments *s, struct slice input)
{
    struct dec d = dec_of(input);
    struct slice part;
    bool right = dec_u8(&d) == CHECKSUMS_PUT_RIGHT;
    while (s->count < SEGMENTS_MAX && fuzz_part(&d, &part)) {
        struct buf *b = &s->bytes[s->count++];
        buf_append(b, part.data, part.size);
        if (right) {
            put_right(b, s->count);
        }
    }
}

static void wal_run(struct slice input)
{
    struct segments s = {0};
    struct faultdisk *fault = faultdisk_new();
    struct disk *disk = faultdisk_disk(fault);
    segments_read(&s, input);
    for (uint32_t i = 0; i < s.count; i++) {
        put_segment(disk, i + 1, buf_slice(&s.bytes[i]));
    }
    struct wal *w = NULL;
    struct wal_recovery found = {0};
    enum err rc = wal_open(disk, "wal", SEGMENT_SIZE, 0, &w, &found);
    if (rc == ERR_OK) {
        check_recorded(&s, &found);
        check_usable(disk, w, &found);
    } else {
        CHECK(rc == ERR_CORRUPT || rc == ERR_VERSION);
        CHECK(strstr(found.problem, rc == ERR_CORRUPT
                                        ? ".wal at byte "
                                        : "another log format") != NULL);
    }
    wal_recovery_free(&found);
    for (uint32_t i = 0; i < s.count; i++) {
        buf_free(&s.bytes[i]);
    }
    faultdisk_free(fault);
}

/* A log as the wal writes it, of three segments, without the zeros that are
 * filled in ahead. */
static void wal_seed(void)
{
    struct faultdisk *fault = faultdisk_new();
    struct raft_conf conf = {.voters = {1, 2, 3}, .voter_count = 3};
    struct raft_hard_state hard = {.term = 2, .vote = 3};
    struct wal *w = NULL;
    struct wal_recovery found;
    struct buf right = {0}, as_is = {0};
    enum err rc =
        wal_open(faultdisk_disk(fault), "wal", SEGMENT_SIZE, 0, &w, &found);
    CHECK(rc == ERR_OK);
    wal_recovery_free(&found);
    for (raft_index i = 1; i <= 150; i++) {
        struct raft_entry e = {.term = 1 + i / 70,
                               .index = i,
                               .type = RAFT_ENTRY_COMMAND,
                               .data = bytes_copy(slice_text("some bytes"))};
        rc = wal_append(w, i % 3 == 0 ? &hard : NULL, &e, 1);
        CHECK(rc == ERR_OK);
        bytes_unref(e.data);
        if (i == 60) {
            rc = wal_compact(w, 20, 1, &conf);
            CHECK(rc == ERR_OK);
        }
    }
    wal_close(w);
    enc_u8(&right, CHECKSUMS_PUT_RIGHT);
    enc_u8(&as_is, AS_IT_IS);
    for (uint32_t i = 0; i < SEGMENTS_MAX; i++) {
        const char *path = faultdisk_path(fault, i);
        if (path != NULL && strstr(path, ".wal") != NULL) {
            struct slice s = buf_slice(faultdisk_bytes(fault, path));
            while (s.size > 0 && s.data[s.size - 1] == 0) {
                s.size--;
            }
            s.size = (s.size + 7) & ~(size_t)7;
            fuzz_add_part(&right, s);
            fuzz_add_part(&as_is, s);
            fuzz_seed(buf_slice(&right));
        }
    }
    fuzz_seed(buf_slice(&as_is));
    buf_free(&right);
    buf_free(&as_is);
    faultdisk_free(fault);
}
const struct fuzz_target fuzz_wal = {"wal", wal_run, wal_seed, 12 << 10};

/* ---- snapshots: a manifest, a piece ---- */

struct piece {
    struct snap_id id;
    struct buf packed;
};

static enum err keep_first(void *arg, const struct snap_id *id,
                           struct slice packed)
{
    struct piece *p = arg;
    if (p->packed.size == 0) {
        p->id = *id;
        buf_append(&p->packed, packed.data, packed.size);
    }
    return ERR_OK;
}

static void pack(struct slice plain, struct piece *p)
{
    struct snap_cutter *c = snap_cutter_new(0, keep_first, p);
    enum err rc = snap_cutter_sink(c)->write(snap_cutter_sink(c), plain);
    CHECK(rc == ERR_OK);
    rc = snap_cutter_finish(c);
    CHECK(rc == ERR_OK);
    snap_cutter_free(c);
}

/* What comes out is what went in, also of a piece with a bit less; or nothing
 * does. */
static void piece_run(struct slice plain, uint8_t chance)
{
    struct snap_unpacker *u = snap_unpacker_new();
    struct piece p = {0};
    struct slice got;
    pack(plain, &p);
    if (p.packed.size > 0 && plain.size < SNAP_PIECE_SIZE_DEFAULT / 4) {
        enum err rc = snap_unpack(u, &p.id, buf_slice(&p.packed), &got);
        CHECK(rc == ERR_OK && slice_compare(got, plain) == 0);
        p.packed.data[chance * 7u % p.packed.size] ^=
            (uint8_t)(1u << (chance & 7));
        rc = snap_unpack(u, &p.id, buf_slice(&p.packed), &got);
        CHECK(rc == ERR_CORRUPT || slice_compare(got, plain) == 0);
    }
    buf_free(&p.packed);
    snap_unpacker_free(u);
}

static void snap_run(struct slice input)
{
    if (input.size == 0) {
        return;
    }
    struct slice rest = slice_of(input.data + 1, input.size - 1);
    struct snap_manifest m;
    if (input.data[0] == AS_IT_IS) {
        struct snap_unpacker *u = snap_unpacker_new();
        struct snap_id id = {0};
        struct slice got;
        (void)!snap_manifest_decode(rest, &m);
        (void)!snap_unpack(u, &id, rest, &got);
        snap_unpacker_free(u);
    } else {
        piece_run(rest, input.data[0]);
    }
}

static void snap_seed(void)
{
    struct snap_id id = {0};
    struct snap_manifest m = {
        .label = {.index = 7,
                  .term = 3,
                  .conf = {.voters = {1}, .voter_count = 1}},
        .ids = &id,
        .count = 1,
    };
    struct buf manifest = {0}, b = {0};
    snap_manifest_encode(&manifest, &m);
    enc_u8(&b, AS_IT_IS);
    buf_append(&b, manifest.data, manifest.size);
    fuzz_seed(buf_slice(&b));
    b.data[0] = CHECKSUMS_PUT_RIGHT;
    fuzz_seed(buf_slice(&b));
    buf_free(&manifest);
    buf_free(&b);
}
const struct fuzz_target fuzz_snapfile = {"snapfile", snap_run, snap_seed, 0};

/* ---- a backup ---- */

enum { ARCHIVE_HEAD_SIZE = 36 };

static enum err archive_from(void *arg, void *to, size_t size_max, size_t *size)
{
    struct slice *left = arg;
    *size = left->size < size_max ? left->size : size_max;
    if (*size > 0) {
        memcpy(to, left->data, *size);
        *left = slice_of(left->data + *size, left->size - *size);
    }
    return ERR_OK;
}

/* Each part of the input is a block: its type, then its plain bytes. */
static void archive_put_right(struct slice input, struct buf *out)
{
    struct dec d = dec_of(input);
    struct slice part;
    for (uint32_t sequence = 0; fuzz_part(&d, &part); sequence++) {
        if (part.size == 0) {
            continue;
        }
        struct slice plain = slice_of(part.data + 1, part.size - 1);
        size_t at = out->size;
        (void)buf_extend(out, ARCHIVE_HEAD_SIZE);
        pack_compress(plain, out);
        uint8_t *head = out->data + at;
        size_t packed = out->size - at - ARCHIVE_HEAD_SIZE;
        set_u32(head, 0x184d2a5f);
        set_u32(head + 4, ARCHIVE_HEAD_SIZE - 8);
        set_u32(head + 8, 0x4b424c46);
        set_u32(head + 12, 1 | (uint32_t)part.data[0] << 16);
        set_u32(head + 16, sequence);
        set_u32(head + 20, (uint32_t)plain.size);
        set_u32(head + 24, (uint32_t)packed);
        set_u32(head + 28, crc32c(0, plain));
        uint32_t crc = crc32c(0, slice_of(head, 32));
        set_u32(head + 32,
                crc32c(crc, slice_of(head + ARCHIVE_HEAD_SIZE, packed)));
    }
}

static void archive_check(const struct skv_archive_item *item)
{
    for (uint32_t i = 0; i < item->data.records_count; i++) {
        struct skv_item write = {.kind = SKV_PUT_RANGE,
                                 .key = item->data.records[i].key,
                                 .offset = item->data.records[i].offset,
                                 .data = item->data.records[i].data};
        struct skv_request q = {.session = 1,
                                .sequence = 1,
                                .shard = item->data.shard,
                                .items = &write,
                                .items_count = 1};
        CHECK(skv_request_check(&q) == ERR_OK);
    }
}

static void archive_run(struct slice input)
{
    if (input.size == 0) {
        return;
    }
    struct slice left = slice_of(input.data + 1, input.size - 1);
    struct buf right = {0};
    if (input.data[0] == CHECKSUMS_PUT_RIGHT) {
        archive_put_right(left, &right);
        left = buf_slice(&right);
    }
    struct skv_archive_reader r = {.read = archive_from, .arg = &left};
    struct skv_archive_item item = {0};
    enum err rc = ERR_OK;
    while (rc == ERR_OK && item.type != SKV_ARCHIVE_END) {
        rc = skv_archive_next(&r, &item);
        if (rc == ERR_OK) {
            archive_check(&item);
        }
    }
    skv_archive_reader_fini(&r);
    buf_free(&right);
}

static enum err archive_to(void *arg, struct slice bytes)
{
    buf_append(arg, bytes.data, bytes.size);
    return ERR_OK;
}

static void archive_seed(void)
{
    uint8_t key[9] = {0, 0, 0, 0, 0, 0, 0, 5, 'c'};
    struct skv_record records[] = {{.key = slice_of(key, 9),
                                    .span = 4096,
                                    .length = 9000,
                                    .data = slice_text("abc")},
                                   {.key = slice_of(key, 9),
                                    .offset = 4096,
                                    .span = 9000 - 4096,
                                    .length = 9000,
                                    .data = slice_text("def")}};
    struct buf b = {0}, parts = {0};
    enc_u8(&b, AS_IT_IS);
    enc_u8(&parts, CHECKSUMS_PUT_RIGHT);
    struct skv_archive_writer w = {.write = archive_to, .arg = &b};
    for (int step = 0; step < 4; step++) {
        size_t at = b.size;
        switch (step) {
        case 0:
            skv_archive_begin(&w, &(struct skv_archive_head){.shard_count = 1});
            break;
        case 1:
            skv_archive_add(&w, &(struct skv_archive_data){.records = records,
                                                           .records_count = 2});
            break;
        case 2: skv_archive_end_shard(&w, 0); break;
        default: CHECK(skv_archive_end(&w) == ERR_OK);
        }
        CHECK(b.size > at);
        struct buf part = {0};
        enc_u8(&part, (uint8_t)(step + 1));
        buf_append(&part, w.plain.data, w.plain.size);
        fuzz_add_part(&parts, buf_slice(&part));
        buf_free(&part);
    }
    skv_archive_writer_fini(&w);
    fuzz_seed(buf_slice(&b));
    fuzz_seed(buf_slice(&parts));
    buf_free(&b);
    buf_free(&parts);
}
const struct fuzz_target fuzz_archive = {"archive", archive_run, archive_seed,
                                         0};
