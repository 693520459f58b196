#include "tests/real/list.h"

#include <string.h>

#include "base/codec.h"

#define LIST_FILE     "list"
#define LIST_FILE_NEW "list.new"

/* The term of the last entry, a checksum of the rest; then the entries. */
enum { HEAD_SIZE = 12 };

static struct list *list_of(struct rsm_fsm *fsm)
{
    return (struct list *)fsm;
}

static struct slice entries_of(const struct lab_log *log)
{
    return slice_of(log->entries, log->count * sizeof *log->entries);
}

static void tell_entry(const struct list *l, raft_index index)
{
    struct real_note note = {.kind = REAL_APPLIED,
                             .index = index,
                             .entry = l->now.entries[index - 1]};
    l->tell(&note);
}

/* ---- the file ---- */

static enum err write_new(struct list *l)
{
    uint8_t head[HEAD_SIZE] = {0};
    struct slice parts[] = {slice_of(head, sizeof head), entries_of(&l->now)};
    struct disk_file *f;
    set_u64(head, l->now.term);
    set_u32(head + 8, crc32c(0, parts[1]));
    enum err rc = l->disk->ops->open(l->disk, LIST_FILE_NEW, true, &f);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = l->disk->ops->truncate(f, 0);
    rc = rc == ERR_OK ? l->disk->ops->write(f, 0, parts, 2) : rc;
    rc = rc == ERR_OK ? l->disk->ops->sync(f) : rc;
    l->disk->ops->close(f);
    return rc;
}

static enum err store(struct list *l)
{
    enum err rc = write_new(l);
    rc = rc == ERR_OK ? l->disk->ops->rename(l->disk, LIST_FILE_NEW, LIST_FILE)
                      : rc;
    rc = rc == ERR_OK ? l->disk->ops->sync_dir(l->disk, "") : rc;
    if (rc == ERR_OK) {
        l->stored = l->now.count;
        l->stored_term = l->now.term;
    }
    return rc;
}

static enum err read_file(struct list *l, struct disk_file *f)
{
    uint64_t size = 0;
    uint8_t head[HEAD_SIZE];
    enum err rc = l->disk->ops->size(f, &size);
    rc = rc == ERR_OK ? l->disk->ops->read(f, 0, head, sizeof head) : rc;
    if (rc != ERR_OK) {
        return rc;
    }
    struct lab_log *log = &l->now;
    log->count = log->capacity = (size - HEAD_SIZE) / sizeof *log->entries;
    log->term = get_u64(head);
    log->entries = mem_array(log->count, sizeof *log->entries);
    rc = l->disk->ops->read(f, HEAD_SIZE, log->entries, size - HEAD_SIZE);
    if (rc == ERR_OK && crc32c(0, entries_of(log)) != get_u32(head + 8)) {
        return ERR_CORRUPT;
    }
    return rc;
}

/* ---- the state machine ---- */

static raft_index list_durable(struct rsm_fsm *fsm, raft_term *term)
{
    *term = list_of(fsm)->stored_term;
    return list_of(fsm)->stored;
}

static enum err list_apply(struct rsm_fsm *fsm, struct rsm_entry *entries,
                           uint32_t count)
{
    struct list *l = list_of(fsm);
    for (uint32_t i = 0; i < count; i++) {
        lab_log_add(&l->now, lab_entry_of(&entries[i]));
        l->now.term = entries[i].term;
        /* Its own index: whether it is the next is the runner's question. */
        struct real_note note = {.kind = REAL_APPLIED,
                                 .index = entries[i].index,
                                 .entry = l->now.entries[l->now.count - 1]};
        l->tell(&note);
    }
    return ERR_OK;
}

static enum err list_checkpoint(struct rsm_fsm *fsm)
{
    return store(list_of(fsm));
}

static enum err list_snap_begin(struct rsm_fsm *fsm, void **view)
{
    struct lab_log *copy = mem_alloc(sizeof *copy);
    lab_log_copy(copy, &list_of(fsm)->now);
    *view = copy;
    return ERR_OK;
}

static enum err list_snap_read(struct rsm_fsm *fsm, void *view,
                               struct snap_sink *sink)
{
    (void)fsm;
    return sink->write(sink, entries_of(view));
}

static void list_snap_end(struct rsm_fsm *fsm, void *view)
{
    (void)fsm;
    lab_log_fini(view);
    mem_free(view);
}

static enum err list_snap_install(struct rsm_fsm *fsm,
                                  struct snap_source *source, raft_index index,
                                  raft_term term)
{
    struct list *l = list_of(fsm);
    struct lab_log log = {.term = term};
    enum err rc = lab_log_read(source, &log);
    if (rc == ERR_OK && log.count != index) {
        rc = ERR_CORRUPT;
    }
    if (rc != ERR_OK) {
        lab_log_fini(&log);
        return rc;
    }
    struct real_note note = {.kind = REAL_INSTALLED, .index = index};
    lab_log_fini(&l->now);
    l->now = log;
    l->tell(&note);
    for (raft_index i = 1; i <= index; i++) {
        tell_entry(l, i);
    }
    return store(l);
}

static const struct rsm_fsm_ops list_ops = {
    .durable = list_durable,
    .apply = list_apply,
    .checkpoint = list_checkpoint,
    .snap_begin = list_snap_begin,
    .snap_read = list_snap_read,
    .snap_end = list_snap_end,
    .snap_install = list_snap_install,
};

enum err list_open(struct list *l, struct disk *disk,
                   void (*tell)(const struct real_note *note))
{
    struct disk_file *f;
    l->fsm.ops = &list_ops;
    l->disk = disk;
    l->tell = tell;
    enum err rc = disk->ops->open(disk, LIST_FILE, false, &f);
    if (rc == ERR_NOTFOUND) {
        return ERR_OK;
    }
    if (rc != ERR_OK) {
        return rc;
    }
    rc = read_file(l, f);
    disk->ops->close(f);
    l->stored = l->now.count;
    l->stored_term = l->now.term;
    for (raft_index i = 1; i <= l->now.count && rc == ERR_OK; i++) {
        tell_entry(l, i);
    }
    return rc;
}
