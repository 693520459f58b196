/* fs/ against an in-memory store: each operation, its errors, and the races
 * that its compares are there for. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include "fs/fs.h"
#include "tests/lib/fake_store.h"

#define OK(call_)         assert_int_equal((call_), ERR_OK)
#define FAILS(rc_, call_) assert_int_equal((call_), (rc_))

static struct fake_store *store;
static struct fs *fs;
static struct fs_call root_call;  /* uid 0 */
static struct fs_call user_call;  /* uid 1000, gid 1000 */
static struct fs *fs2;            /* another mount */
static struct fs_call other_call; /* uid 0, there */
#define C (&root_call)
#define U (&user_call)
#define O (&other_call)
#define R FS_INO_ROOT

static int setup_shards(uint32_t shards)
{
    store = fake_store_new(shards);
    fs = fs_new(fake_store_seam(store));
    fs2 = fs_new(fake_store_seam(store));
    fs_call_begin(C, fs, 0, 0);
    fs_call_begin(U, fs, 1000, 1000);
    fs_call_begin(O, fs2, 0, 0);
    return fs_mkfs(C) != ERR_OK || fs_mkfs(O) != ERR_OK;
}

static int setup(void **state)
{
    (void)state;
    return setup_shards(8);
}

static int setup_one(void **state)
{
    (void)state;
    return setup_shards(1);
}

static int teardown(void **state)
{
    (void)state;
    fs_call_end(C);
    fs_call_end(U);
    fs_call_end(O);
    fs_free(fs);
    fs_free(fs2);
    fake_store_free(store);
    return 0;
}

/* ---- helpers ---- */

static uint64_t mkdir_at(uint64_t parent, const char *name)
{
    struct fs_attr a;
    OK(fs_mkdir(C, parent, name, 0755, &a));
    return a.ino;
}

static uint64_t touch_at(uint64_t parent, const char *name)
{
    struct fs_attr a;
    OK(fs_mknod(C, parent, name, S_IFREG | 0644, 0, &a));
    return a.ino;
}

static struct fs_attr attr_of(uint64_t ino)
{
    struct fs_attr a = {0};
    OK(fs_getattr(C, ino, &a));
    return a;
}

static uint64_t ino_at(uint64_t parent, const char *name)
{
    struct fs_attr a = {0};
    enum err rc = fs_lookup(C, parent, name, &a);
    assert_true(rc == ERR_OK || rc == ERR_NOTFOUND);
    return rc == ERR_OK ? a.ino : 0;
}

static struct fs_file *open_at(struct fs_call *c, uint64_t ino, int flags)
{
    struct fs_file *f = NULL;
    OK(fs_open(c, ino, flags, &f));
    return f;
}

static void write_text(struct fs_call *c, struct fs_file *f, uint64_t offset,
                       const char *text)
{
    uint64_t at;
    OK(fs_write(c, f, offset, slice_text(text), false, &at));
}

static void set_content(uint64_t ino, const char *text)
{
    struct fs_file *f = open_at(C, ino, O_WRONLY | O_TRUNC);
    write_text(C, f, 0, text);
    OK(fs_release(C, f));
}

static void assert_content(struct fs_call *c, struct fs_file *f,
                           const char *text, size_t size)
{
    struct arena a = {0};
    struct slice got;
    OK(fs_read(c, f, 0, FS_IO_SIZE_MAX, &a, &got));
    assert_int_equal(got.size, size);
    if (size > 0) {
        assert_memory_equal(got.data, text, size);
    }
    arena_free(&a);
}

static void assert_text(uint64_t ino, const char *text)
{
    struct fs_file *f = open_at(C, ino, O_RDONLY);
    assert_content(C, f, text, strlen(text));
    OK(fs_release(C, f));
}

struct listing {
    struct buf text; /* "name name " */
    uint32_t count, with_attr, limit;
    uint64_t next;
};

static bool list_one(void *arg, const struct fs_dirent *e)
{
    struct listing *l = arg;
    if (l->limit != 0 && l->count == l->limit) {
        return false;
    }
    buf_append(&l->text, e->name, strlen(e->name));
    buf_append(&l->text, " ", 1);
    l->count++;
    l->with_attr += e->attr != NULL;
    l->next = e->next;
    return true;
}

static void assert_names(uint64_t dir, const char *names)
{
    struct fs_dir *d;
    struct listing l = {0};
    OK(fs_opendir(C, dir, &d));
    OK(fs_readdir(C, d, 0, false, list_one, &l));
    OK(fs_releasedir(C, d));
    buf_append(&l.text, "", 1);
    assert_string_equal((char *)l.text.data, names);
    buf_free(&l.text);
}

/* ---- names ---- */

static void root_is_made_once_and_kept(void **state)
{
    (void)state;
    struct fs_attr before = attr_of(R);
    OK(fs_mkfs(O));
    struct fs_attr after = attr_of(R);
    assert_true(S_ISDIR(after.mode));
    assert_int_equal(after.nlink, 2);
    assert_int_equal(before.btime.tv_nsec, after.btime.tv_nsec);
}

static void create_gives_what_lookup_finds(void **state)
{
    (void)state;
    struct fs_attr made, found;
    uint64_t dir = mkdir_at(R, "d");
    OK(fs_mknod(U, dir, "p", S_IFIFO | 0640, 0, &made));
    OK(fs_lookup(C, dir, "p", &found));
    assert_int_equal(made.ino, found.ino);
    assert_int_equal(found.mode, S_IFIFO | 0640);
    assert_int_equal(found.uid, 1000);
    assert_int_equal(found.nlink, 1);
    assert_int_equal(found.ino >> 48, dir >> 48); /* the directory's shard */
    OK(fs_mknod(C, dir, "null", S_IFCHR | 0666, 0x103, &made));
    assert_int_equal(attr_of(made.ino).rdev, 0x103);
    FAILS(ERR_EXISTS, fs_mknod(C, dir, "p", S_IFREG | 0600, 0, &made));
    FAILS(ERR_EXISTS, fs_mkdir(C, dir, "p", 0700, &made));
    FAILS(ERR_NOTFOUND, fs_lookup(C, dir, "q", &found));
    FAILS(ERR_NOTDIR, fs_mknod(C, made.ino, "x", S_IFREG, 0, &made));
}

static void names_have_1_to_255_bytes(void **state)
{
    (void)state;
    struct fs_attr a;
    char name[258];
    memset(name, 'n', sizeof name);
    name[255] = '\0';
    OK(fs_mkdir(C, R, name, 0755, &a));
    assert_int_equal(ino_at(R, name), a.ino);
    name[255] = 'n';
    name[256] = '\0';
    FAILS(ERR_NAMETOOLONG, fs_mkdir(C, R, name, 0755, &a));
    FAILS(ERR_NAMETOOLONG, fs_lookup(C, R, name, &a));
    FAILS(ERR_NAMETOOLONG, fs_unlink(C, R, name));
    FAILS(ERR_NAMETOOLONG, fs_rename(C, R, "a", R, name, 0));
    FAILS(ERR_EXISTS, fs_mkdir(C, R, ".", 0755, &a));
}

static void mkdir_counts_and_spreads(void **state)
{
    (void)state;
    uint32_t seen = 0;
    for (int i = 0; i < 8; i++) {
        char name[16];
        snprintf(name, sizeof name, "d%d", i);
        uint64_t ino = mkdir_at(R, name);
        seen |= 1u << (ino >> 48);
        assert_int_equal(attr_of(ino).parent, R);
        assert_int_equal(attr_of(ino).nlink, 2);
    }
    assert_int_equal(seen, 0xff); /* each of the eight shards */
    assert_int_equal(attr_of(R).nlink, 10);
}

/* A group has shards that lie side by side: no few directories may all be in
 * the lower or the upper half. */
static void a_few_directories_are_in_several_groups(void **state)
{
    (void)state;
    uint32_t run = 0, upper = 2;
    for (uint32_t i = 0; i < 16; i++) {
        char name[8];
        snprintf(name, sizeof name, "h%u", i);
        uint32_t half = mkdir_at(R, name) >> 48 >= 4;
        run = half == upper ? run + 1 : 1;
        upper = half;
        assert_true(run <= 2);
    }
}

static void setgid_directories_pass_their_group_on(void **state)
{
    (void)state;
    struct fs_attr a, want = {.mode = 02775, .gid = 77};
    uint64_t dir = mkdir_at(R, "d");
    touch_at(dir, "before"); /* the mount now remembers the plain mode */
    OK(fs_setattr(O, dir, &want, FS_SET_MODE | FS_SET_GID, &a));
    OK(fs_mknod(U, dir, "f", S_IFREG | 0644, 0, &a));
    assert_int_equal(a.gid, 77);
    assert_int_equal(attr_of(a.ino).gid, 77);
    assert_int_equal(a.mode & S_ISGID, 0);
    OK(fs_mkdir(U, dir, "s", 0755, &a));
    assert_int_equal(attr_of(a.ino).gid, 77);
    assert_int_equal(attr_of(a.ino).mode & 07777, 02755);
}

static void symlinks_keep_their_target(void **state)
{
    (void)state;
    struct fs_attr a;
    char to[FS_LINK_SIZE_MAX + 1];
    static char longest[FS_LINK_SIZE_MAX + 2];
    OK(fs_symlink(C, R, "s", "../x/y", &a));
    assert_int_equal(attr_of(a.ino).size, 6);
    assert_true(S_ISLNK(attr_of(a.ino).mode));
    OK(fs_readlink(C, a.ino, to));
    assert_string_equal(to, "../x/y");
    memset(longest, 't', sizeof longest - 1);
    FAILS(ERR_NAMETOOLONG, fs_symlink(C, R, "l", longest, &a));
    longest[FS_LINK_SIZE_MAX] = '\0';
    OK(fs_symlink(C, R, "l", longest, &a));
    OK(fs_readlink(C, a.ino, to));
    assert_string_equal(to, longest);
    FAILS(ERR_INVALID, fs_readlink(C, R, to));
    FAILS(ERR_STALE, fs_readlink(C, 0x3000000009999, to));
}

static void hard_links_share_an_inode_across_shards(void **state)
{
    (void)state;
    struct fs_attr a;
    uint64_t x = mkdir_at(R, "x"), y = mkdir_at(R, "y");
    uint64_t f = touch_at(x, "f");
    set_content(f, "one");
    OK(fs_link(C, f, y, "g", &a));
    assert_int_equal(a.nlink, 2);
    assert_int_equal(ino_at(y, "g"), f);
    OK(fs_unlink(C, x, "f"));
    assert_int_equal(attr_of(f).nlink, 1);
    assert_text(ino_at(y, "g"), "one");
    FAILS(ERR_EXISTS, fs_link(C, f, y, "g", &a));
    FAILS(ERR_PERM, fs_link(C, x, y, "d", &a));
    OK(fs_unlink(C, y, "g"));
    FAILS(ERR_STALE, fs_getattr(C, f, &a));
    FAILS(ERR_STALE, fs_link(C, f, y, "h", &a));
    assert_int_equal(fake_store_keys(store, f), 0); /* content too */
}

static void unlink_and_rmdir_tell_files_from_directories(void **state)
{
    (void)state;
    uint64_t d = mkdir_at(R, "d");
    uint64_t f = touch_at(d, "f");
    FAILS(ERR_ISDIR, fs_unlink(C, R, "d"));
    FAILS(ERR_NOTDIR, fs_rmdir(C, d, "f"));
    FAILS(ERR_NOTFOUND, fs_unlink(C, d, "nope"));
    FAILS(ERR_NOTFOUND, fs_rmdir(C, d, "nope"));
    FAILS(ERR_NOTEMPTY, fs_rmdir(C, R, "d"));
    OK(fs_unlink(C, d, "f"));
    OK(fs_rmdir(C, R, "d"));
    assert_int_equal(attr_of(R).nlink, 2);
    assert_int_equal(fake_store_keys(store, d), 0);
    assert_int_equal(fake_store_keys(store, f), 0);
    struct fs_attr a;
    FAILS(ERR_NOTFOUND, fs_mknod(C, d, "late", S_IFREG, 0, &a));
    FAILS(ERR_NOTFOUND, fs_link(C, touch_at(R, "g"), d, "late", &a));
    FAILS(ERR_NOTFOUND, fs_rename(C, R, "g", d, "late", 0));
}

static void an_entry_change_moves_the_directorys_times(void **state)
{
    (void)state;
    uint64_t d = mkdir_at(R, "d");
    struct fs_attr old = {.mtime = {.tv_sec = 5}}, a;
    OK(fs_setattr(C, d, &old, FS_SET_MTIME, &a));
    assert_int_equal(attr_of(d).mtime.tv_sec, 5);
    touch_at(d, "f");
    assert_true(attr_of(d).mtime.tv_sec > 5);
    OK(fs_setattr(C, d, &old, FS_SET_MTIME, &a));
    OK(fs_unlink(C, d, "f"));
    assert_true(attr_of(d).mtime.tv_sec > 5);
}

/* ---- races, by running something between reading and writing ---- */

struct race {
    enum err (*op)(void);
    enum err rc;
    uint64_t a, b;
};
static struct race race;

static void race_run(void *arg)
{
    (void)arg;
    race.rc = race.op();
}

static enum err race_create(void)
{
    struct fs_attr a;
    return fs_mknod(O, race.a, "late", S_IFREG | 0644, 0, &a);
}

/* CMP_EMPTY sees the entry when all is one step. */
static void create_before_rmdir_makes_it_fail(void **state)
{
    (void)state;
    race = (struct race){.op = race_create, .a = mkdir_at(R, "d")};
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_NOTEMPTY, fs_rmdir(C, R, "d"));
    OK(race.rc);
    assert_names(race.a, ". .. late ");
}

/* Between the votes and the commit only the lock on the attributes key, which
 * both write, keeps the entry out. */
static void create_inside_rmdir_cannot_succeed(void **state)
{
    (void)state;
    uint64_t d = mkdir_at(R, "d");
    while (d >> 48 == 0) {
        OK(fs_rmdir(C, R, "d"));
        d = mkdir_at(R, "d"); /* in another shard than the root */
    }
    race = (struct race){.op = race_create, .a = d};
    fake_store_hook_between(store, race_run, NULL);
    OK(fs_rmdir(C, R, "d"));
    assert_int_not_equal(race.rc, ERR_OK);
    assert_int_equal(fake_store_keys(store, d), 0);
}

static enum err race_unlink(void)
{
    return fs_unlink(O, R, "f");
}

static void a_name_removed_meanwhile_is_not_found(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f");
    race = (struct race){.op = race_unlink};
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_NOTFOUND, fs_unlink(C, R, "f"));
    OK(race.rc);
    f = touch_at(R, "f");
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_NOTFOUND, fs_rename(C, R, "f", R, "g", 0));
    f = touch_at(R, "f");
    struct fs_attr a;
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_STALE, fs_link(C, f, R, "g", &a));
    assert_int_equal(fake_store_keys(store, f), 0);
}

static enum err race_link(void)
{
    struct fs_attr a;
    return fs_link(O, race.a, R, "g", &a);
}

/* An unlink that took the read link count for true would delete the file under
 * its new name. */
static void a_link_made_during_unlink_keeps_the_file(void **state)
{
    (void)state;
    race = (struct race){.op = race_link, .a = touch_at(R, "f")};
    fake_store_hook_write(store, race_run, NULL);
    OK(fs_unlink(C, R, "f"));
    OK(race.rc);
    assert_int_equal(attr_of(race.a).nlink, 1);
    assert_int_equal(ino_at(R, "g"), race.a);
}

static void a_name_made_during_create_is_refused_or_opened(void **state)
{
    (void)state;
    struct fs_attr a;
    struct fs_file *f;
    race = (struct race){.op = race_create, .a = R};
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_EXISTS, fs_create(C, R, "late", 0600, O_CREAT | O_EXCL, &a, &f));
    OK(fs_unlink(C, R, "late"));
    fake_store_hook_write(store, race_run, NULL);
    OK(fs_create(C, R, "late", 0600, O_CREAT, &a, &f));
    assert_int_equal(a.mode & 0777, 0644); /* the other one's */
    OK(fs_release(C, f));
}

/* ---- rename ---- */

static void rename_replaces_only_like_by_like(void **state)
{
    (void)state;
    uint64_t x = mkdir_at(R, "x"), y = mkdir_at(R, "y");
    uint64_t f = touch_at(x, "f"), g = touch_at(y, "g");
    uint64_t sub = mkdir_at(x, "sub"), full = mkdir_at(y, "full");
    uint64_t empty = mkdir_at(y, "empty");
    touch_at(full, "in");

    FAILS(ERR_EXISTS, fs_rename(C, x, "f", y, "g", FS_RENAME_NOREPLACE));
    FAILS(ERR_ISDIR, fs_rename(C, x, "f", y, "empty", 0));
    FAILS(ERR_NOTDIR, fs_rename(C, x, "sub", y, "g", 0));
    FAILS(ERR_NOTEMPTY, fs_rename(C, x, "sub", y, "full", 0));
    FAILS(ERR_NOTFOUND, fs_rename(C, x, "nope", y, "g", 0));
    FAILS(ERR_INVALID, fs_rename(C, x, "f", y, "g", 4));
    FAILS(ERR_INVALID, fs_rename(C, x, "f", y, "g",
                                 FS_RENAME_NOREPLACE | FS_RENAME_EXCHANGE));

    OK(fs_rename(C, x, "f", y, "g", 0)); /* across shards */
    assert_int_equal(ino_at(y, "g"), f);
    assert_int_equal(fake_store_keys(store, g), 0);
    assert_int_equal(attr_of(x).nlink, 3);
    assert_int_equal(attr_of(y).nlink, 4);
    OK(fs_rename(C, x, "sub", y, "empty", 0));
    assert_int_equal(attr_of(sub).parent, y);
    assert_int_equal(attr_of(x).nlink, 2);
    assert_int_equal(attr_of(y).nlink, 4);
    assert_int_equal(fake_store_keys(store, empty), 0);
    assert_names(y, ". .. empty full g ");
    OK(fs_rename(C, y, "g", y, "h", FS_RENAME_NOREPLACE)); /* same directory */
    assert_names(y, ". .. empty full h ");
    OK(fs_rename(C, y, "empty", y, "empty", 0));
    FAILS(ERR_NOTEMPTY, fs_rename(C, y, "empty", y, "full", 0));
    OK(fs_unlink(C, full, "in"));
    OK(fs_rename(C, y, "empty", y, "full", 0));
    assert_int_equal(attr_of(y).nlink, 3);
    assert_names(y, ". .. full h ");
}

static void rename_onto_another_link_of_the_same_file_does_nothing(void **state)
{
    (void)state;
    struct fs_attr a;
    uint64_t f = touch_at(R, "f");
    OK(fs_link(C, f, R, "g", &a));
    OK(fs_rename(C, R, "f", R, "g", 0));
    assert_names(R, ". .. f g ");
    assert_int_equal(attr_of(f).nlink, 2);
    uint64_t h = touch_at(R, "h");
    OK(fs_rename(C, R, "h", R, "g", 0)); /* takes one of two names away */
    assert_int_equal(attr_of(f).nlink, 1);
    assert_int_equal(ino_at(R, "g"), h);
}

static void rename_into_its_own_subtree_is_refused(void **state)
{
    (void)state;
    uint64_t a = mkdir_at(R, "a"), b = mkdir_at(a, "b"), c = mkdir_at(b, "c");
    FAILS(ERR_INVALID, fs_rename(C, R, "a", a, "x", 0));
    FAILS(ERR_INVALID, fs_rename(C, R, "a", c, "x", 0));
    FAILS(ERR_INVALID, fs_rename(C, R, "a", b, "c", FS_RENAME_EXCHANGE));
    FAILS(ERR_INVALID, fs_rename(C, b, "c", R, "a", FS_RENAME_EXCHANGE));
    FAILS(ERR_NOTEMPTY, fs_rename(C, b, "c", R, "a", 0));
    OK(fs_rename(C, b, "c", R, "c", 0));
    assert_int_equal(attr_of(c).parent, R);
    assert_int_equal(attr_of(b).nlink, 2);
    assert_int_equal(attr_of(R).nlink, 4);
}

static void exchange_swaps_a_file_and_a_directory(void **state)
{
    (void)state;
    uint64_t x = mkdir_at(R, "x"), y = mkdir_at(R, "y");
    uint64_t f = touch_at(x, "f"), d = mkdir_at(y, "d");
    touch_at(d, "in");
    FAILS(ERR_NOTFOUND, fs_rename(C, x, "f", y, "no", FS_RENAME_EXCHANGE));
    OK(fs_rename(C, x, "f", y, "d", FS_RENAME_EXCHANGE));
    assert_int_equal(ino_at(x, "f"), d);
    assert_int_equal(ino_at(y, "d"), f);
    assert_int_equal(attr_of(d).parent, x);
    assert_int_equal(attr_of(x).nlink, 3);
    assert_int_equal(attr_of(y).nlink, 2);
    assert_names(d, ". .. in ");
    OK(fs_rename(C, R, "x", R, "y", FS_RENAME_EXCHANGE));
    assert_int_equal(ino_at(R, "x"), y);
}

static enum err race_cross(void)
{
    /* b goes below a while the other one puts a below b. */
    return fs_rename(O, R, "b", race.a, "b", 0);
}

/* Each rename alone is fine; both would cut a and b off from the root. */
static void crossing_renames_form_no_cycle(void **state)
{
    (void)state;
    uint64_t a = mkdir_at(R, "a"), b = mkdir_at(R, "b");
    race = (struct race){.op = race_cross, .a = a, .b = b};
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_INVALID, fs_rename(C, R, "a", b, "a", 0));
    OK(race.rc);
    assert_int_equal(ino_at(R, "a"), a);
    assert_int_equal(ino_at(a, "b"), b);
}

static enum err race_deep(void)
{
    return fs_rename(O, race.b, "y", race.a, "y", 0);
}

/* As above, but what moves is above the other's target and not the target, so
 * that no entry nor parent of the first rename is written by the second. */
static void crossing_renames_deep_down_form_no_cycle(void **state)
{
    (void)state;
    uint64_t p = mkdir_at(R, "p"), q = mkdir_at(R, "q");
    uint64_t x = mkdir_at(p, "x"), x2 = mkdir_at(x, "x2");
    uint64_t y = mkdir_at(q, "y"), y2 = mkdir_at(y, "y2");
    race = (struct race){.op = race_deep, .a = x2, .b = q};
    fake_store_hook_write(store, race_run, NULL);
    FAILS(ERR_INVALID, fs_rename(C, p, "x", y2, "x", 0));
    OK(race.rc);
    assert_int_equal(attr_of(x).parent, p);
    assert_int_equal(attr_of(y).parent, x2);
    (void)y;
}

/* ---- content ---- */

static void a_shells_redirection_is_one_put(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f");
    set_content(f, "something longer");
    fake_store_clear(store);
    struct fs_file *h = open_at(C, f, O_WRONLY | O_TRUNC);
    OK(fs_flush(C, h, true)); /* the shell closes its first descriptor */
    write_text(C, h, 0, "hello\n");
    OK(fs_flush(C, h, false));
    OK(fs_release(C, h));
    struct fake_count n = fake_store_count(store);
    assert_string_equal(n.content, "PUT 6 ");
    assert_int_equal(n.writes, 1);
    assert_text(f, "hello\n");
}

static void a_new_file_takes_a_create_and_a_put(void **state)
{
    (void)state;
    struct fs_attr a;
    struct fs_file *h;
    touch_at(R, "other"); /* counters are fetched */
    fake_store_clear(store);
    OK(fs_create(C, R, "f", 0644, O_CREAT | O_TRUNC | O_WRONLY, &a, &h));
    write_text(C, h, 0, "hello\n");
    OK(fs_release(C, h));
    struct fake_count n = fake_store_count(store);
    assert_string_equal(n.content, "PUT 6 ");
    assert_int_equal(n.writes, 2);
    assert_int_equal(n.execs, 2);
}

static void an_append_is_one_append_where_it_is_applied(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f"), at;
    set_content(f, "one\n");
    struct fs_file *h = open_at(C, f, O_WRONLY | O_APPEND);
    struct fs_file *o = open_at(O, f, O_WRONLY | O_APPEND);
    fake_store_clear(store);
    OK(fs_write(C, h, 0, slice_text("two\n"), true, &at));
    assert_int_equal(at, 4);
    OK(fs_write(O, o, 0, slice_text("three\n"), true, &at));
    assert_int_equal(at, 8);
    OK(fs_write(C, h, 4, slice_text("four\n"), true, &at));
    assert_int_equal(at, 14);
    struct fake_count n = fake_store_count(store);
    assert_string_equal(n.content, "APPEND 4 APPEND 6 APPEND 5 ");
    assert_int_equal(n.execs, 3);
    OK(fs_release(C, h));
    OK(fs_release(O, o));
    assert_text(f, "one\ntwo\nthree\nfour\n");
}

static enum err race_append(void)
{
    struct fs_file *o = open_at(O, race.a, O_WRONLY | O_APPEND);
    uint64_t at;
    enum err rc = fs_write(O, o, 0, slice_text("B"), true, &at);
    fs_release(O, o);
    return rc;
}

static void appends_from_two_mounts_never_overlap(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f"), at;
    set_content(f, "A");
    struct fs_file *h = open_at(C, f, O_WRONLY | O_APPEND);
    race = (struct race){.op = race_append, .a = f};
    fake_store_hook_write(store, race_run, NULL);
    OK(fs_write(C, h, 1, slice_text("C"), true, &at));
    assert_int_equal(at, 2);
    OK(fs_release(C, h));
    assert_text(f, "ABC");
}

/* Whatever could see that the truncation is put off, sees it done. */
static void a_truncation_put_off_is_never_seen(void **state)
{
    (void)state;
    struct fs_attr a, set = {.size = 2};
    uint64_t f = touch_at(R, "f");
    for (int way = 0; way < 9; way++) {
        set_content(f, "0123456789");
        struct fs_file *h = open_at(C, f, O_RDWR | O_TRUNC), *h2 = NULL;
        const char *want = "";
        fake_store_clear(store);
        switch (way) {
        case 0: OK(fs_getattr(C, f, &a)); break;
        case 1: OK(fs_lookup(C, R, "f", &a)); break;
        case 2: assert_content(C, h, "", 0); break;
        case 3: OK(fs_flush(C, h, false)); break;
        case 4: OK(fs_fsync(C, h)); break;
        case 5:
            h2 = open_at(C, f, O_RDONLY);
            OK(fs_release(C, h2));
            break;
        case 6: OK(fs_setattr(C, f, &set, FS_SET_SIZE, &a)); break;
        case 7: write_text(C, h, 2, "x"); break;
        default: break;
        }
        if (way == 0 || way == 1) {
            assert_int_equal(a.size, 0);
        }
        OK(fs_release(C, h));
        assert_memory_equal(fake_store_count(store).content, "TRUNCATE 0 ", 11);
        struct fs_file *o = open_at(O, f, O_RDONLY);
        want = way == 6 ? "\0" : way == 7 ? "\0\0x" : "";
        assert_content(O, o, want, way == 6 ? 2 : way == 7 ? 3 : 0);
        OK(fs_release(O, o));
    }
}

static void holes_read_as_zeros(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f");
    struct fs_file *h = open_at(C, f, O_RDWR);
    struct arena a = {0};
    struct slice got;
    write_text(C, h, 100000, "end");
    assert_int_equal(attr_of(f).size, 100003);
    OK(fs_read(C, h, 99998, 100, &a, &got));
    assert_int_equal(got.size, 5);
    assert_memory_equal(got.data, "\0\0end", 5);
    OK(fs_read(C, h, 200000, 100, &a, &got));
    assert_int_equal(got.size, 0);
    uint64_t at;
    FAILS(ERR_TOOBIG,
          fs_write(C, h, SKV_VALUE_SIZE_MAX, slice_text("x"), false, &at));
    arena_free(&a);
    OK(fs_release(C, h));
}

static void fallocate_does_what_its_modes_say(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f");
    struct fs_file *h = open_at(C, f, O_RDWR);
    OK(fs_fallocate(C, h, 0, 0, 8)); /* no content yet */
    assert_int_equal(attr_of(f).size, 8);
    write_text(C, h, 0, "abcdefgh");
    OK(fs_fallocate(C, h, FALLOC_FL_KEEP_SIZE, 0, 100));
    OK(fs_fallocate(C, h, 0, 0, 4)); /* inside: changes nothing */
    assert_content(C, h, "abcdefgh", 8);
    OK(fs_fallocate(C, h, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 6, 100));
    assert_content(C, h, "abcdef\0\0", 8);
    OK(fs_fallocate(C, h, FALLOC_FL_ZERO_RANGE, 0, 2));
    assert_content(C, h, "\0\0cdef\0\0", 8);
    OK(fs_fallocate(C, h, FALLOC_FL_ZERO_RANGE, 4, 6));
    assert_content(C, h, "\0\0cd\0\0\0\0\0\0", 10);
    FAILS(ERR_NOTSUP, fs_fallocate(C, h, FALLOC_FL_COLLAPSE_RANGE, 0, 1));
    FAILS(ERR_NOTSUP, fs_fallocate(C, h, FALLOC_FL_PUNCH_HOLE, 0, 1));
    FAILS(ERR_INVALID, fs_fallocate(C, h, 0, 0, 0));
    FAILS(ERR_TOOBIG, fs_fallocate(C, h, 0, SKV_VALUE_SIZE_MAX, 1));
    /* Growing must not cut off what was appended meanwhile. */
    race = (struct race){.op = race_append, .a = f};
    fake_store_hook_write(store, race_run, NULL);
    OK(fs_fallocate(C, h, 0, 0, 11));
    OK(race.rc);
    assert_content(C, h, "\0\0cd\0\0\0\0\0\0B", 11);
    OK(fs_release(C, h));
}

/* ---- open and unlinked ---- */

static void an_open_file_outlives_its_name(void **state)
{
    (void)state;
    struct fs_attr a;
    uint64_t f = touch_at(R, "f");
    set_content(f, "kept");
    struct fs_file *h = open_at(C, f, O_RDWR), *h2 = open_at(C, f, O_RDWR);
    OK(fs_unlink(C, R, "f"));
    assert_names(R, ". .. ");
    assert_int_equal(attr_of(f).nlink, 0);
    FAILS(ERR_NOTFOUND, fs_link(C, f, R, "again", &a));
    OK(fs_release(C, h2));
    write_text(C, h, 4, "!");
    assert_content(C, h, "kept!", 5);
    OK(fs_release(C, h));
    assert_int_equal(fake_store_keys(store, f), 0);
    assert_int_equal(fake_store_keys(store, 0xfffffffffffe), 1); /* counters */
    FAILS(ERR_STALE, fs_getattr(C, f, &a));
}

static void a_replaced_open_file_outlives_its_name(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f"), g = touch_at(R, "g");
    set_content(g, "old");
    struct fs_file *h = open_at(C, g, O_RDONLY);
    OK(fs_rename(C, R, "f", R, "g", 0));
    assert_content(C, h, "old", 3);
    OK(fs_release(C, h));
    assert_int_equal(fake_store_keys(store, g), 0);
    assert_int_equal(ino_at(R, "g"), f);
}

static void an_open_directory_outlives_its_name_but_takes_none(void **state)
{
    (void)state;
    struct fs_dir *d;
    struct fs_attr a;
    struct listing l = {0};
    uint64_t ino = mkdir_at(R, "d");
    OK(fs_opendir(C, ino, &d));
    OK(fs_rmdir(C, R, "d"));
    OK(fs_readdir(C, d, 0, false, list_one, &l));
    assert_int_equal(l.count, 2);
    buf_free(&l.text);
    assert_int_equal(attr_of(ino).nlink, 0);
    FAILS(ERR_NOTFOUND, fs_mknod(C, ino, "x", S_IFREG, 0, &a));
    OK(fs_releasedir(C, d));
    assert_int_equal(fake_store_keys(store, ino), 0);
}

static void another_mounts_unlink_makes_the_handle_stale(void **state)
{
    (void)state;
    uint64_t f = touch_at(R, "f"), at;
    struct fs_file *h = open_at(C, f, O_RDWR);
    struct arena a = {0};
    struct slice got;
    OK(fs_unlink(O, R, "f"));
    FAILS(ERR_STALE, fs_read(C, h, 0, 1, &a, &got));
    FAILS(ERR_STALE, fs_write(C, h, 0, slice_text("x"), false, &at));
    FAILS(ERR_STALE, fs_write(C, h, 0, slice_text("x"), true, &at));
    assert_int_equal(fake_store_keys(store, f),
                     0); /* no write brought it back */
    OK(fs_release(C, h));
}

static void what_a_dead_mount_left_can_be_reaped(void **state)
{
    (void)state;
    uint64_t d = mkdir_at(R, "d"), f = touch_at(d, "f"), g = touch_at(R, "g");
    struct fs_file *h = open_at(O, f, O_RDWR), *h2 = open_at(O, g, O_RDWR);
    OK(fs_unlink(O, d, "f"));
    OK(fs_unlink(O, R, "g"));
    uint64_t count;
    OK(fs_reap(C, fs_mount_id(fs), &count));
    assert_int_equal(count, 0); /* not ours */
    OK(fs_reap(C, fs_mount_id(fs2), &count));
    assert_int_equal(count, 2);
    assert_int_equal(fake_store_keys(store, f), 0);
    assert_int_equal(fake_store_keys(store, g), 0);
    OK(fs_release(O, h)); /* it was not so dead: no harm */
    OK(fs_release(O, h2));
}

/* ---- directories ---- */

enum { MANY = 5000 };

static void five_thousand_names_are_each_read_once(void **state)
{
    (void)state;
    static bool seen[MANY];
    uint64_t dir = mkdir_at(R, "d");
    char name[16];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "n%d", i);
        touch_at(dir, name);
    }
    mkdir_at(dir, "sub");
    struct fs_dir *d;
    OK(fs_opendir(C, dir, &d));
    struct listing l = {0};
    uint64_t next = 0;
    uint32_t total = 0, attrs = 0;
    do { /* in small steps, as the kernel does */
        l.count = 0;
        l.with_attr = 0;
        l.limit = 37;
        OK(fs_readdir(C, d, next, next % 2 == 0, list_one, &l));
        next = l.next;
        total += l.count;
        attrs += l.with_attr;
        if (total == 37 * 3) {
            OK(fs_unlink(C, dir, "n4999")); /* does not shift the others */
            touch_at(dir, "n4999");
        }
    } while (l.count > 0);
    assert_int_equal(total, MANY + 3);
    assert_true(attrs > MANY / 4);
    buf_append(&l.text, "", 1);
    char *save = NULL;
    for (char *t = strtok_r((char *)l.text.data, " ", &save); t != NULL;
         t = strtok_r(NULL, " ", &save)) {
        int i;
        if (sscanf(t, "n%d", &i) == 1) {
            assert_false(seen[i]);
            seen[i] = true;
        }
    }
    for (int i = 0; i < MANY; i++) {
        assert_true(seen[i]);
    }
    buf_free(&l.text);
    OK(fs_unlink(C, dir, "n0"));
    struct listing again = {0}; /* as rewinddir() */
    OK(fs_readdir(C, d, 0, false, list_one, &again));
    assert_int_equal(again.count, MANY + 2);
    buf_free(&again.text);
    OK(fs_releasedir(C, d));
}

/* ---- attributes ---- */

static void setattr_changes_what_it_is_told(void **state)
{
    (void)state;
    struct fs_attr a, want = {.mode = 0100, .uid = 5, .gid = 6, .size = 3};
    uint64_t f = touch_at(R, "f");
    set_content(f, "abcdef");
    want.atime = (struct timespec){.tv_sec = -5, .tv_nsec = 999999999};
    want.mtime = (struct timespec){.tv_sec = 1ll << 35, .tv_nsec = 1};
    OK(fs_setattr(C, f, &want,
                  FS_SET_MODE | FS_SET_UID | FS_SET_GID | FS_SET_SIZE |
                      FS_SET_ATIME | FS_SET_MTIME,
                  &a));
    struct fs_attr got = attr_of(f);
    assert_int_equal(got.mode, S_IFREG | 0100);
    assert_int_equal(got.uid, 5);
    assert_int_equal(got.gid, 6);
    assert_int_equal(got.size, 3);
    assert_int_equal(got.atime.tv_sec, -5);
    assert_int_equal(got.atime.tv_nsec, 999999999);
    assert_int_equal(got.mtime.tv_sec, 1ll << 35);
    assert_int_equal(a.size, 3);
    assert_int_equal(a.mode, got.mode);
    assert_int_equal(a.ctime.tv_nsec, got.ctime.tv_nsec);
    assert_int_equal(a.atime.tv_sec, -5);
    assert_text(f, "abc");
    FAILS(ERR_ISDIR, fs_setattr(C, R, &want, FS_SET_SIZE, &a));
    want.size = SKV_VALUE_SIZE_MAX + 1;
    FAILS(ERR_TOOBIG, fs_setattr(C, f, &want, FS_SET_SIZE, &a));
    FAILS(ERR_STALE, fs_setattr(C, 12345, &want, FS_SET_MODE, &a));
}

static uint32_t mode_after_chown(uint32_t mode)
{
    struct fs_attr a, want = {.mode = mode, .uid = 7};
    uint64_t f = ino_at(R, "f");
    OK(fs_setattr(C, f, &want, FS_SET_MODE, &a));
    OK(fs_setattr(C, f, &want, FS_SET_UID, &a));
    return attr_of(f).mode & 07777;
}

static void set_id_bits_go_with_owner_and_content(void **state)
{
    (void)state;
    struct fs_attr a, want = {.mode = 06777};
    uint64_t f = touch_at(R, "f");
    assert_int_equal(mode_after_chown(06777), 0777);
    assert_int_equal(mode_after_chown(06767), 02767); /* no group execute */
    OK(fs_setattr(C, f, &want, FS_SET_MODE, &a));
    struct fs_file *h = open_at(U, f, O_RDWR), *h0 = open_at(C, f, O_RDWR);
    write_text(C, h0, 0, "root may");
    assert_int_equal(attr_of(f).mode & 07777, 06777);
    write_text(U, h, 0, "user");
    assert_int_equal(attr_of(f).mode & 07777, 0777);
    OK(fs_setattr(C, f, &want, FS_SET_MODE, &a)); /* while it is open */
    write_text(U, h, 0, "user");
    assert_int_equal(attr_of(f).mode & 07777, 0777);
    OK(fs_setattr(C, f, &want, FS_SET_MODE, &a));
    OK(fs_setattr(U, f, &want, FS_SET_SIZE, &a));
    assert_int_equal(attr_of(f).mode & 07777, 0777);
    OK(fs_release(U, h));
    OK(fs_release(C, h0));
}

static void extended_attributes_come_and_go(void **state)
{
    (void)state;
    struct arena a = {0};
    struct slice got;
    struct buf names = {0};
    uint64_t f = touch_at(R, "f");
    OK(fs_setxattr(C, f, "user.a", slice_text("1"), XATTR_CREATE));
    FAILS(ERR_EXISTS,
          fs_setxattr(C, f, "user.a", slice_text("2"), XATTR_CREATE));
    OK(fs_setxattr(C, f, "user.a", slice_text("22"), XATTR_REPLACE));
    FAILS(ERR_NODATA,
          fs_setxattr(C, f, "user.b", slice_text("2"), XATTR_REPLACE));
    OK(fs_setxattr(C, f, "user.b", slice_text(""), 0));
    OK(fs_getxattr(C, f, "user.a", &a, &got));
    assert_int_equal(got.size, 2);
    OK(fs_getxattr(C, f, "user.b", &a, &got));
    assert_int_equal(got.size, 0);
    FAILS(ERR_NODATA, fs_getxattr(C, f, "user.c", &a, &got));
    OK(fs_listxattr(C, f, &names));
    assert_int_equal(names.size, 14);
    assert_memory_equal(names.data, "user.a\0user.b", 14);
    OK(fs_removexattr(C, f, "user.a"));
    FAILS(ERR_NODATA, fs_removexattr(C, f, "user.a"));
    FAILS(ERR_NOTSUP,
          fs_setxattr(C, f, "system.posix_acl_access", slice_text("x"), 0));
    FAILS(ERR_STALE, fs_setxattr(C, 12345, "user.a", slice_text("1"), 0));
    OK(fs_unlink(C, R, "f"));
    assert_int_equal(fake_store_keys(store, f), 0);
    arena_free(&a);
    buf_free(&names);
}

/* ---- cost ---- */

static void common_operations_are_one_transaction(void **state)
{
    (void)state;
    struct fs_attr a;
    uint64_t d = mkdir_at(R, "d"), f = touch_at(d, "f");
    struct fs_file *h = open_at(C, f, O_RDWR);
    struct arena arena = {0};
    struct slice got;
    fake_store_clear(store);
    OK(fs_lookup(C, d, "f", &a));
    OK(fs_getattr(C, f, &a));
    OK(fs_mknod(C, d, "g", S_IFREG | 0644, 0, &a));
    write_text(C, h, 3, "x");
    OK(fs_read(C, h, 0, 10, &arena, &got));
    struct fake_count n = fake_store_count(store);
    assert_int_equal(n.execs, 5);
    assert_int_equal(n.writes, 2);
    assert_int_equal(n.several, 0);
    arena_free(&arena);
    OK(fs_release(C, h));
    fake_store_clear(store);
    OK(fs_unlink(C, d, "f"));
    assert_int_equal(fake_store_count(store).writes, 1);
}

/* ---- giving up ---- */

static void *stuck_getattr(void *arg)
{
    struct fs_attr a;
    *(enum err *)arg = fs_getattr(U, R, &a);
    return NULL;
}

static void a_call_that_waits_can_be_cancelled(void **state)
{
    (void)state;
    struct fs_attr a;
    pthread_t thread;
    enum err rc = ERR_OK;
    fake_store_stick(store, true);
    assert_int_equal(pthread_create(&thread, NULL, stuck_getattr, &rc), 0);
    fs_call_cancel(U); /* before, during or after it got there */
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(rc, ERR_INTERRUPTED);
    fs_cancel_all(fs);
    FAILS(ERR_INTERRUPTED, fs_getattr(C, R, &a));
    fake_store_stick(store, false);
    OK(fs_getattr(O, R, &a));
}

/* ---- many at once ---- */

enum { THREADS = 4, ROUNDS = 300 };

static void *churn(void *arg)
{
    struct fs *mount = (uintptr_t)arg % 2 == 0 ? fs : fs2;
    struct fs_call c;
    struct fs_attr a;
    struct fs_file *f;
    uint64_t at;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        fs_call_begin(&c, mount, 0, 0);
        enum err rc =
            fs_create(&c, R, "shared", 0644,
                      O_CREAT | O_WRONLY | (i % 3 ? O_TRUNC : 0), &a, &f);
        if (rc == ERR_OK) {
            rc = fs_write(&c, f, 0, slice_text("line\n"), i % 2 == 0, &at);
            assert_true(rc == ERR_OK || rc == ERR_STALE);
            fs_release(&c, f);
        } else {
            assert_int_equal(rc, ERR_STALE);
        }
        if (i % 4 == 0) {
            rc = fs_rename(&c, R, "shared", R, "moved", 0);
            assert_true(rc == ERR_OK || rc == ERR_NOTFOUND);
        }
        if (i % 5 == 0) {
            rc = fs_unlink(&c, R, "moved");
            assert_true(rc == ERR_OK || rc == ERR_NOTFOUND);
        }
        fs_call_end(&c);
    }
    return NULL;
}

static void churn_from_two_mounts_leaves_nothing_behind(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, churn, (void *)i),
                         0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    enum err rc = fs_unlink(C, R, "shared");
    assert_true(rc == ERR_OK || rc == ERR_NOTFOUND);
    rc = fs_unlink(C, R, "moved");
    assert_true(rc == ERR_OK || rc == ERR_NOTFOUND);
    assert_int_equal(fake_store_keys(store, 0), 1); /* the root's attributes */
    assert_int_equal(attr_of(R).nlink, 2);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(root_is_made_once_and_kept),
        T(create_gives_what_lookup_finds),
        T(names_have_1_to_255_bytes),
        T(mkdir_counts_and_spreads),
        T(a_few_directories_are_in_several_groups),
        T(setgid_directories_pass_their_group_on),
        T(symlinks_keep_their_target),
        T(hard_links_share_an_inode_across_shards),
        T(unlink_and_rmdir_tell_files_from_directories),
        T(an_entry_change_moves_the_directorys_times),
        T(create_before_rmdir_makes_it_fail),
        cmocka_unit_test_setup_teardown(create_before_rmdir_makes_it_fail,
                                        setup_one, teardown),
        T(create_inside_rmdir_cannot_succeed),
        T(a_name_removed_meanwhile_is_not_found),
        T(a_link_made_during_unlink_keeps_the_file),
        T(a_name_made_during_create_is_refused_or_opened),
        T(rename_replaces_only_like_by_like),
        cmocka_unit_test_setup_teardown(rename_replaces_only_like_by_like,
                                        setup_one, teardown),
        T(rename_onto_another_link_of_the_same_file_does_nothing),
        T(rename_into_its_own_subtree_is_refused),
        T(exchange_swaps_a_file_and_a_directory),
        T(crossing_renames_form_no_cycle),
        T(crossing_renames_deep_down_form_no_cycle),
        T(a_shells_redirection_is_one_put),
        T(a_new_file_takes_a_create_and_a_put),
        T(an_append_is_one_append_where_it_is_applied),
        T(appends_from_two_mounts_never_overlap),
        T(a_truncation_put_off_is_never_seen),
        T(holes_read_as_zeros),
        T(fallocate_does_what_its_modes_say),
        T(an_open_file_outlives_its_name),
        T(a_replaced_open_file_outlives_its_name),
        T(an_open_directory_outlives_its_name_but_takes_none),
        T(another_mounts_unlink_makes_the_handle_stale),
        T(what_a_dead_mount_left_can_be_reaped),
        T(five_thousand_names_are_each_read_once),
        T(setattr_changes_what_it_is_told),
        T(set_id_bits_go_with_owner_and_content),
        T(extended_attributes_come_and_go),
        T(common_operations_are_one_transaction),
        T(a_call_that_waits_can_be_cancelled),
        T(churn_from_two_mounts_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
