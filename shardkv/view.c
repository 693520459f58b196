/* The views of cuts that are open at this replica. A slot passes from one
 * thread to another by `open`: the "apply" worker fills it and sets it, the
 * "view" worker reads it, empties it and clears it. That a replica has no slot
 * left, or cannot open a view, changes nothing that replicas must have alike:
 * whoever wants to read then asks another. */
#include "shardkv/fsm_int.h"

#include "base/log.h"

/* Zeros are read and not sent; nobody waits for this worker. */
enum { READ_FACTOR = 64 };

static bool is_open(const struct skv_view_slot *slot)
{
    return __atomic_load_n(&slot->open, __ATOMIC_ACQUIRE) != 0;
}

static struct skv_view_slot *find(struct skv_fsm *f, uint64_t id)
{
    for (uint32_t i = 0; i < SKV_VIEWS_MAX; i++) {
        struct skv_view_slot *slot = &f->views[i];
        if (is_open(slot) &&
            __atomic_load_n(&slot->id, __ATOMIC_RELAXED) == id) {
            return slot;
        }
    }
    return NULL;
}

static struct skv_view_slot *find_free(struct skv_fsm *f)
{
    for (uint32_t i = 0; i < SKV_VIEWS_MAX; i++) {
        if (!is_open(&f->views[i])) {
            return &f->views[i];
        }
    }
    return NULL;
}

void skv_view_add(struct skv_fsm *f)
{
    struct skv_view_slot *slot = find_free(f);
    if (slot == NULL || find(f, f->view_wanted) != NULL) {
        log_warn("shardkv", "view not opened: %s",
                 slot == NULL ? "too many are open" : "it is open");
        return;
    }
    enum err rc = f->store->ops->view_open_exact(f->store, &slot->view);
    if (rc != ERR_OK) {
        log_warn("shardkv", "view not opened: %s", err_text(rc));
        return;
    }
    __atomic_store_n(&slot->id, f->view_wanted, __ATOMIC_RELAXED);
    slot->index = f->index;
    __atomic_store_n(&slot->open, 1, __ATOMIC_RELEASE);
}

static uint32_t sum_of(const struct skv_pulled *batch)
{
    struct buf b = {0};
    skv_pulled_encode(&b, batch);
    uint32_t crc = crc32c(0, buf_slice(&b));
    buf_free(&b);
    return crc;
}

enum err skv_view_look(struct skv_fsm *f, const struct skv_look *look,
                       struct buf *out)
{
    const struct skv_view_slot *slot = find(f, look->id);
    if (slot == NULL) {
        return ERR_NOTFOUND;
    }
    struct arena arena = {0};
    struct skv_source source = {.store = f->store,
                                .view = slot->view,
                                .arena = &arena,
                                .batch_size = f->batch_size,
                                .read_size = READ_FACTOR * f->batch_size};
    struct skv_cursor from = {.key = look->key, .offset = look->offset};
    struct skv_pulled batch = {0};
    enum err rc = skv_batch_fill(&source, look->shard, &from, &batch);
    if (rc == ERR_OK) {
        struct skv_seen seen = {
            .index = slot->index,
            .crc = sum_of(&batch),
            .last = batch.end == SKV_END_LAST,
            .next_key = batch.cursor.key,
            .next_offset = batch.cursor.offset,
            .records = batch.records,
            .records_count =
                look->what == SKV_LOOK_READ ? batch.records_count : 0,
        };
        skv_seen_encode(out, &seen);
    }
    arena_free(&arena);
    return rc;
}

void skv_view_remove(struct skv_fsm *f, uint64_t id)
{
    struct skv_view_slot *slot = find(f, id);
    if (slot != NULL) {
        f->store->ops->view_close(f->store, slot->view);
        __atomic_store_n(&slot->open, 0, __ATOMIC_RELEASE);
    }
}
