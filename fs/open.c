/* The table of inodes that are open on this mount.
 *
 *  1. An inode with a handle is not deleted by this mount: its last name leaves
 *     it marked removed, and the last handle deletes it. `removing` keeps
 *     opening and closing out while a name is taken, so that what the
 *     transaction said about handles is still so when it is done.
 *  2. open(O_TRUNC) is put off: the first write at the start then replaces the
 *     content, and `echo x > f` is one Put. Whatever on this mount could see
 *     the difference carries the truncation out before (fs_open_settle). While
 *     `busy`, somebody is doing one or the other, and everybody waits.
 *  3. An entry lives while it has handles, or is being removed, or is busy.
 *  4. open_lock guards all; call_lock may be taken under it. */
#include "base/check.h"
#include "fs/fs_int.h"

enum pending {
    PENDING_NONE,
    PENDING_FRESH,    /* made by this open: nothing to carry out */
    PENDING_TRUNCATE, /* still has its old content */
};

struct fs_open {
    UT_hash_handle hh;
    uint64_t ino;
    uint32_t handles;
    bool removing;
    bool busy;
    bool orphan; /* the last handle deletes it */
    bool setid;  /* may have set-id bits */
    enum pending pending;
};

static struct fs_open *find(struct fs *fs, uint64_t ino)
{
    struct fs_open *o = NULL;
    HASH_FIND(hh, fs->opens, &ino, sizeof ino, o);
    return o;
}

static struct fs_open *find_or_add(struct fs *fs, uint64_t ino)
{
    struct fs_open *o = find(fs, ino);
    if (o == NULL) {
        o = mem_alloc(sizeof *o);
        o->ino = ino;
        HASH_ADD(hh, fs->opens, ino, sizeof o->ino, o);
    }
    return o;
}

static void changed(struct fs *fs, struct fs_open *o)
{
    if (o->handles == 0 && !o->removing && !o->busy) {
        HASH_DELETE(hh, fs->opens, o);
        mem_free(o);
    }
    pthread_cond_broadcast(&fs->open_changed);
}

static enum err wait_change(struct fs_call *call)
{
    if (fs_call_cancelled(call)) {
        return ERR_INTERRUPTED;
    }
    pthread_cond_wait(&call->fs->open_changed, &call->fs->open_lock);
    return ERR_OK;
}

enum err fs_open_begin(struct fs_call *call, uint64_t ino, struct fs_open **out)
{
    struct fs *fs = call->fs;
    enum err rc = ERR_OK;
    pthread_mutex_lock(&fs->open_lock);
    struct fs_open *o = find(fs, ino);
    while (rc == ERR_OK && o != NULL && o->removing) {
        rc = wait_change(call);
        o = find(fs, ino);
    }
    if (rc == ERR_OK) {
        o = find_or_add(fs, ino);
        o->handles++;
        *out = o;
    }
    pthread_mutex_unlock(&fs->open_lock);
    return rc;
}

enum err fs_open_end(struct fs_call *call, struct fs_open *o)
{
    struct fs *fs = call->fs;
    uint64_t ino = o->ino;
    enum err rc = fs_open_settle(call, ino);

    pthread_mutex_lock(&fs->open_lock);
    /* Not cut short: a handle must go. Who we wait for can be. */
    while (o->removing || o->busy) {
        pthread_cond_wait(&fs->open_changed, &fs->open_lock);
    }
    bool last = --o->handles == 0 && o->orphan;
    changed(fs, o);
    pthread_mutex_unlock(&fs->open_lock);

    if (last) {
        enum err deleted = fs_orphan_delete(call, fs->mount_id, ino);
        rc = rc == ERR_OK ? deleted : rc;
    }
    return rc;
}

uint64_t fs_open_ino(const struct fs_open *o)
{
    return o->ino;
}

enum err fs_remove_begin(struct fs_call *call, uint64_t ino, bool *open_here)
{
    struct fs *fs = call->fs;
    enum err rc = ERR_OK;
    pthread_mutex_lock(&fs->open_lock);
    struct fs_open *o = find(fs, ino);
    while (rc == ERR_OK && o != NULL && (o->removing || o->busy)) {
        rc = wait_change(call);
        o = find(fs, ino);
    }
    if (rc == ERR_OK) {
        o = find_or_add(fs, ino);
        o->removing = true;
        *open_here = o->handles > 0;
    }
    pthread_mutex_unlock(&fs->open_lock);
    return rc;
}

void fs_remove_end(struct fs *fs, uint64_t ino, bool orphaned)
{
    pthread_mutex_lock(&fs->open_lock);
    struct fs_open *o = find(fs, ino);
    CHECK(o != NULL);
    CHECK(o->removing);
    o->removing = false;
    o->orphan = o->orphan || orphaned;
    changed(fs, o);
    pthread_mutex_unlock(&fs->open_lock);
}

/* ---- the truncation that was put off ---- */

bool fs_open_pending(struct fs *fs, uint64_t ino)
{
    pthread_mutex_lock(&fs->open_lock);
    struct fs_open *o = find(fs, ino);
    bool pending = o != NULL && o->pending == PENDING_TRUNCATE;
    pthread_mutex_unlock(&fs->open_lock);
    return pending;
}

/* Gives the entry, now busy, if there is something to carry out. */
static enum err settle_begin(struct fs_call *call, uint64_t ino,
                             struct fs_open **out)
{
    struct fs *fs = call->fs;
    enum err rc = ERR_OK;
    *out = NULL;
    pthread_mutex_lock(&fs->open_lock);
    struct fs_open *o = find(fs, ino);
    while (rc == ERR_OK && o != NULL && o->busy) {
        rc = wait_change(call);
        o = find(fs, ino);
    }
    if (rc == ERR_OK && o != NULL && o->pending == PENDING_TRUNCATE) {
        o->busy = true;
        *out = o;
    }
    pthread_mutex_unlock(&fs->open_lock);
    return rc;
}

enum err fs_open_settle(struct fs_call *call, uint64_t ino)
{
    struct fs_open *o;
    enum err rc = settle_begin(call, ino, &o);
    if (rc != ERR_OK || o == NULL) {
        return rc;
    }
    rc = fs_content_truncate(call, o);
    rc = rc == ERR_STALE ? ERR_OK : rc; /* a file that is gone has no content */
    fs_open_wrote(call->fs, o, rc == ERR_OK);
    return rc;
}

enum err fs_open_write(struct fs_call *call, struct fs_open *o, uint64_t offset,
                       bool append, enum fs_write_how *how)
{
    struct fs *fs = call->fs;
    if (!append && offset != 0) {
        *how = FS_WRITE_INTO;
        return fs_open_settle(call, o->ino);
    }
    enum err rc = ERR_OK;
    pthread_mutex_lock(&fs->open_lock);
    while (rc == ERR_OK && o->busy) {
        rc = wait_change(call);
    }
    if (rc == ERR_OK) {
        *how = o->pending == PENDING_TRUNCATE ? FS_WRITE_REPLACE
               : o->pending == PENDING_FRESH  ? FS_WRITE_FIRST
                                              : FS_WRITE_INTO;
        o->busy = o->pending != PENDING_NONE;
    }
    pthread_mutex_unlock(&fs->open_lock);
    return rc;
}

void fs_open_wrote(struct fs *fs, struct fs_open *o, bool done)
{
    pthread_mutex_lock(&fs->open_lock);
    CHECK(o->busy);
    o->busy = false;
    o->pending = done ? PENDING_NONE : o->pending;
    changed(fs, o);
    pthread_mutex_unlock(&fs->open_lock);
}

static enum err put_off(struct fs_call *call, struct fs_open *o,
                        enum pending what)
{
    enum err rc = ERR_OK;
    pthread_mutex_lock(&call->fs->open_lock);
    while (rc == ERR_OK && o->busy) {
        rc = wait_change(call);
    }
    if (rc == ERR_OK && o->pending != PENDING_TRUNCATE) {
        o->pending = what;
    }
    pthread_mutex_unlock(&call->fs->open_lock);
    return rc;
}

/* ---- set-id bits ---- */

bool fs_open_setid(struct fs *fs, const struct fs_open *o)
{
    pthread_mutex_lock(&fs->open_lock);
    bool setid = o->setid;
    pthread_mutex_unlock(&fs->open_lock);
    return setid;
}

void fs_open_note_mode(struct fs *fs, uint64_t ino, uint32_t mode)
{
    pthread_mutex_lock(&fs->open_lock);
    struct fs_open *o = find(fs, ino);
    if (o != NULL) {
        o->setid = S_ISREG(mode) && (mode & (S_ISUID | S_ISGID)) != 0;
    }
    pthread_mutex_unlock(&fs->open_lock);
}

/* ---- files ---- */

static struct fs_file *file_new(struct fs_open *o)
{
    struct fs_file *file = mem_alloc(sizeof *file);
    file->open = o;
    return file;
}

/* A removed inode may be opened again while a handle keeps it (/proc/self/fd);
 * else it is only waiting to be deleted. */
static enum err open_check(struct fs_call *call, struct fs_open *o,
                           struct fs_attr *attr)
{
    enum err rc = fs_attr_read(call, o->ino, attr);
    if (rc != ERR_OK || !attr->removed) {
        return rc;
    }
    pthread_mutex_lock(&call->fs->open_lock);
    bool kept = o->handles > 1;
    pthread_mutex_unlock(&call->fs->open_lock);
    return kept ? ERR_OK : ERR_STALE;
}

static enum err open_prepare(struct fs_call *call, struct fs_open *o, int flags)
{
    struct fs_attr attr;
    enum err rc = open_check(call, o, &attr);
    if (rc != ERR_OK) {
        return rc;
    }
    if (S_ISDIR(attr.mode)) {
        return ERR_ISDIR;
    }
    fs_open_note_mode(call->fs, o->ino, attr.mode);
    if ((flags & O_TRUNC) != 0) {
        return put_off(call, o, PENDING_TRUNCATE);
    }
    return fs_open_settle(call, o->ino);
}

enum err fs_open(struct fs_call *call, uint64_t ino, int flags,
                 struct fs_file **out)
{
    struct fs_open *o;
    enum err rc = fs_open_begin(call, ino, &o);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = open_prepare(call, o, flags);
    if (rc != ERR_OK) {
        fs_open_end(call, o);
        return rc;
    }
    *out = file_new(o);
    return ERR_OK;
}

static enum err create_new(struct fs_call *call, uint64_t parent,
                           const char *name, uint32_t mode,
                           struct fs_attr *attr, struct fs_file **out)
{
    enum err rc =
        fs_mknod(call, parent, name, S_IFREG | (mode & 07777u), 0, attr);
    if (rc != ERR_OK) {
        return rc;
    }
    struct fs_open *o;
    rc = fs_open_begin(call, attr->ino, &o);
    if (rc != ERR_OK) {
        return rc;
    }
    fs_open_note_mode(call->fs, o->ino, attr->mode);
    rc = put_off(call, o, PENDING_FRESH);
    if (rc != ERR_OK) {
        fs_open_end(call, o);
        return rc;
    }
    *out = file_new(o);
    return ERR_OK;
}

/* The kernel asks to create when it saw no such name; another mount may have
 * made it since. */
static enum err create_existing(struct fs_call *call, uint64_t parent,
                                const char *name, int flags,
                                struct fs_attr *attr, struct fs_file **out)
{
    enum err rc = fs_lookup(call, parent, name, attr);
    if (rc == ERR_OK && S_ISLNK(attr->mode)) {
        return ERR_STALE; /* makes the kernel walk the path again */
    }
    return rc == ERR_OK ? fs_open(call, attr->ino, flags, out) : rc;
}

enum err fs_create(struct fs_call *call, uint64_t parent, const char *name,
                   uint32_t mode, int flags, struct fs_attr *attr,
                   struct fs_file **out)
{
    struct fs_retry retry = {0};
    for (;;) {
        enum err rc = create_new(call, parent, name, mode, attr, out);
        if (rc != ERR_EXISTS || (flags & O_EXCL) != 0) {
            return rc;
        }
        rc = create_existing(call, parent, name, flags, attr, out);
        if (rc != ERR_NOTFOUND) {
            return rc;
        }
        rc = fs_retry_pause(call, &retry); /* and gone again */
        if (rc != ERR_OK) {
            return rc;
        }
    }
}

enum err fs_release(struct fs_call *call, struct fs_file *file)
{
    enum err rc = fs_open_end(call, file->open);
    mem_free(file);
    return rc;
}

/* A shell opens for `>`, copies the descriptor and closes the first one before
 * anything is written: such a close leaves the truncation for the write. */
enum err fs_flush(struct fs_call *call, struct fs_file *file, bool more)
{
    return more ? ERR_OK : fs_open_settle(call, file->open->ino);
}

bool fs_is_put_off(struct fs_call *call, struct fs_file *file)
{
    return fs_open_pending(call->fs, file->open->ino);
}

/* Each answer is already on disk on a majority. */
enum err fs_fsync(struct fs_call *call, struct fs_file *file)
{
    return fs_open_settle(call, file->open->ino);
}

void fs_free(struct fs *fs)
{
    if (fs == NULL) {
        return;
    }
    CHECK(fs->calls == NULL);
    struct fs_open *o, *next;
    HASH_ITER(hh, fs->opens, o, next)
    {
        HASH_DELETE(hh, fs->opens, o);
        mem_free(o);
    }
    pthread_cond_destroy(&fs->call_woken);
    pthread_cond_destroy(&fs->open_changed);
    pthread_mutex_destroy(&fs->call_lock);
    pthread_mutex_destroy(&fs->ino_lock);
    pthread_mutex_destroy(&fs->open_lock);
    mem_free(fs->ranges);
    mem_free(fs);
}
