/* The views of cuts that are open at this replica. A slot passes from one
 * thread to another by `open`:
 *
 *    FREE --"apply" fills it--> NEW --somebody asks for it--> TAKEN
 *    TAKEN --"view" empties it--> FREE
 *    NEW --"apply" needs the slot--> FREE, and filled again
 *
 * A replica that replays the log, as a new one does, opens the views of all
 * cuts of old again, and nobody ever asks for them: those make room. That a
 * replica has no slot left, or cannot open a view, changes nothing that
 * replicas must have alike: whoever wants to read then asks another. */
#include "shardkv/fsm_int.h"

#include "base/log.h"

/* Zeros are read and not sent; nobody waits for this worker. */
enum { READ_FACTOR = 64 };

enum skv_view_state { VIEW_FREE, VIEW_NEW, VIEW_TAKEN };

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

static bool pass(struct skv_view_slot *slot, uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(&slot->open, &from, to, false,
                                       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* What was found may just have made room for another; what is TAKEN does not.
 */
static struct skv_view_slot *take(struct skv_fsm *f, uint64_t id)
{
    struct skv_view_slot *slot = find(f, id);
    if (slot == NULL) {
        return NULL;
    }
    (void)pass(slot, VIEW_NEW, VIEW_TAKEN);
    bool taken = __atomic_load_n(&slot->open, __ATOMIC_ACQUIRE) == VIEW_TAKEN;
    return taken && __atomic_load_n(&slot->id, __ATOMIC_RELAXED) == id ? slot
                                                                       : NULL;
}

bool skv_view_take(struct skv_fsm *f, uint64_t id)
{
    return take(f, id) != NULL;
}

static struct skv_view_slot *find_free(struct skv_fsm *f)
{
    struct skv_view_slot *oldest = NULL;
    for (uint32_t i = 0; i < SKV_VIEWS_MAX; i++) {
        struct skv_view_slot *slot = &f->views[i];
        uint32_t state = __atomic_load_n(&slot->open, __ATOMIC_ACQUIRE);
        if (state == VIEW_FREE) {
            return slot;
        }
        if (state == VIEW_NEW &&
            (oldest == NULL || slot->index < oldest->index)) {
            oldest = slot;
        }
    }
    if (oldest == NULL || !pass(oldest, VIEW_NEW, VIEW_FREE)) {
        return NULL;
    }
    f->store->ops->view_close(f->store, oldest->view);
    return oldest;
}

void skv_view_add(struct skv_fsm *f)
{
    struct skv_view_slot *slot =
        find(f, f->view_wanted) == NULL ? find_free(f) : NULL;
    if (slot == NULL) {
        log_warn("shardkv", "view not opened: too many are open, or it is");
        return;
    }
    enum err rc = f->store->ops->view_open_exact(f->store, &slot->view);
    if (rc != ERR_OK) {
        log_warn("shardkv", "view not opened: %s", err_text(rc));
        return;
    }
    __atomic_store_n(&slot->id, f->view_wanted, __ATOMIC_RELAXED);
    slot->index = f->index;
    __atomic_store_n(&slot->open, VIEW_NEW, __ATOMIC_RELEASE);
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
    const struct skv_view_slot *slot = take(f, look->id);
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
    struct skv_view_slot *slot = take(f, id);
    if (slot != NULL) {
        f->store->ops->view_close(f->store, slot->view);
        __atomic_store_n(&slot->open, VIEW_FREE, __ATOMIC_RELEASE);
    }
}
