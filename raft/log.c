/* The log in memory: one contiguous array, so that a run of entries can be lent
 * to messages, updates and the applier without a copy.
 *
 * Invariants:
 *  1. Slot `head + i` holds the entry with index `base + 1 + i`.
 *  2. Terms do not go back along the log (checked where entries come in).
 *  3. Each live slot holds one reference on its data.
 *  4. `ends` grows along the log: bytes between two entries are one
 *     subtraction.
 *  5. floor <= base; the runs cover (floor, base] and nothing else: the first
 *     begins at or before floor + 1, and terms rise from run to run. */
#include <string.h>

#include "raft/raft_int.h"

void raft_log_init(struct raft_log *log, raft_index base, raft_term base_term)
{
    *log = (struct raft_log){.base = base,
                             .base_term = base_term,
                             .floor = base,
                             .floor_term = base_term};
}

void raft_log_fini(struct raft_log *log)
{
    raft_log_reset(log, 0, 0);
    mem_free(log->slots);
    mem_free(log->ends);
    mem_free(log->runs);
    *log = (struct raft_log){0};
}

raft_index raft_log_last(const struct raft_log *log)
{
    return log->base + log->count;
}

raft_term raft_log_last_term(const struct raft_log *log)
{
    return log->count == 0 ? log->base_term
                           : log->slots[log->head + log->count - 1].term;
}

/* The last run that begins at or before it. */
static raft_term evicted_term(const struct raft_log *log, raft_index index)
{
    size_t low = 0, high = log->run_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (log->runs[middle].first <= index) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return log->runs[low].term;
}

bool raft_log_term(const struct raft_log *log, raft_index index,
                   raft_term *term)
{
    if (index < log->floor || index > raft_log_last(log)) {
        return false;
    }
    if (index > log->base) {
        *term = raft_log_at(log, index)->term;
    } else if (index == log->floor) {
        *term = log->floor_term;
    } else {
        *term = evicted_term(log, index);
    }
    return true;
}

bool raft_log_has(const struct raft_log *log, raft_index index, raft_term term)
{
    raft_term ours = 0;
    return raft_log_term(log, index, &ours) && ours == term;
}

struct raft_entry *raft_log_at(const struct raft_log *log, raft_index index)
{
    CHECK(index > log->base);
    CHECK(index <= raft_log_last(log));
    return &log->slots[log->head + (size_t)(index - log->base - 1)];
}

static uint64_t end_of(const struct raft_log *log, raft_index index)
{
    if (index <= log->base) {
        return log->base_end;
    }
    return log->ends[log->head + (size_t)(index - log->base - 1)];
}

/* Room for one more. When at least half of the array is compacted away, moving
 * the rest down is cheaper than growing, and pays for itself: the next move is
 * at least as many appends away as entries were moved. */
static void make_room(struct raft_log *log)
{
    if (log->head + log->count < log->capacity) {
        return;
    }
    if (log->head > log->count) {
        memmove(log->slots, log->slots + log->head,
                log->count * sizeof *log->slots);
        memmove(log->ends, log->ends + log->head,
                log->count * sizeof *log->ends);
        log->head = 0;
        return;
    }
    log->capacity = log->capacity == 0 ? 64 : log->capacity * 2;
    log->slots = mem_resize(log->slots, log->capacity * sizeof *log->slots);
    log->ends = mem_resize(log->ends, log->capacity * sizeof *log->ends);
}

void raft_log_append(struct raft_log *log, raft_term term,
                     enum raft_entry_type type, struct bytes *data)
{
    CHECK(term >= raft_log_last_term(log));
    make_room(log);
    uint64_t before = end_of(log, raft_log_last(log));
    size_t slot = log->head + log->count;
    log->slots[slot] = (struct raft_entry){
        .term = term,
        .index = raft_log_last(log) + 1,
        .type = type,
        .data = bytes_ref(data),
    };
    log->ends[slot] = before + bytes_slice(data).size + RAFT_ENTRY_OVERHEAD;
    log->count++;
}

void raft_log_truncate(struct raft_log *log, raft_index from)
{
    CHECK(from > log->base);
    while (raft_log_last(log) >= from) {
        bytes_unref(log->slots[log->head + log->count - 1].data);
        log->count--;
    }
}

static void add_run(struct raft_log *log, raft_index first, raft_term term)
{
    if (log->run_count > 0 && log->runs[log->run_count - 1].term == term) {
        return;
    }
    log->runs = raft_grow(log->runs, &log->run_capacity, log->run_count,
                          sizeof *log->runs);
    log->runs[log->run_count++] =
        (struct raft_run){.first = first, .term = term};
}

void raft_log_add_evicted(struct raft_log *log, raft_index last, raft_term term)
{
    CHECK(log->count == 0);
    add_run(log, log->base + 1, term);
    log->base = last;
    log->base_term = term;
}

void raft_log_evict(struct raft_log *log, raft_index index)
{
    raft_term term = 0;
    CHECK(raft_log_term(log, index, &term));
    log->base_end = end_of(log, index);
    while (log->base < index) {
        add_run(log, log->base + 1, log->slots[log->head].term);
        bytes_unref(log->slots[log->head].data);
        log->head++;
        log->count--;
        log->base++;
    }
    log->base_term = term;
}

void raft_log_compact(struct raft_log *log, raft_index index)
{
    if (index > log->base) {
        raft_log_evict(log, index);
    }
    raft_term term = 0;
    CHECK(raft_log_term(log, index, &term));
    log->floor = index;
    log->floor_term = term;
    size_t gone = 0;
    while (gone < log->run_count &&
           (gone + 1 < log->run_count ? log->runs[gone + 1].first - 1
                                      : log->base) <= index) {
        gone++;
    }
    log->run_count -= gone;
    if (log->run_count > 0) {
        memmove(log->runs, log->runs + gone,
                log->run_count * sizeof *log->runs);
    }
}

void raft_log_reset(struct raft_log *log, raft_index base, raft_term base_term)
{
    if (log->count > 0) {
        raft_log_truncate(log, log->base + 1);
    }
    log->head = 0;
    log->base = log->floor = base;
    log->base_term = log->floor_term = base_term;
    log->run_count = 0;
}

uint64_t raft_log_bytes(const struct raft_log *log, raft_index after,
                        raft_index upto)
{
    return upto <= after ? 0 : end_of(log, upto) - end_of(log, after);
}

raft_index raft_log_first_of(const struct raft_log *log, raft_term term)
{
    for (size_t i = 0; i < log->run_count; i++) {
        const struct raft_run *run = &log->runs[i];
        if (run->term >= term) {
            return run->first > log->floor ? run->first : log->floor + 1;
        }
    }
    raft_index low = log->base + 1;
    raft_index high = raft_log_last(log) + 1;
    while (low < high) {
        raft_index middle = low + (high - low) / 2;
        if (raft_log_at(log, middle)->term >= term) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

uint32_t raft_log_fit(const struct raft_log *log, raft_index first,
                      raft_index last, uint32_t count_max, size_t size_max)
{
    if (last > raft_log_last(log)) {
        last = raft_log_last(log);
    }
    if (first <= log->base || first > last || count_max == 0) {
        return 0;
    }
    uint32_t count = 1;
    while (count < count_max && first + count <= last &&
           raft_log_bytes(log, first - 1, first + count) <= size_max) {
        count++;
    }
    return count;
}
