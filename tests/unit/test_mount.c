/* mount/ over fs/ over the in-memory store, through the kernel. Skipped where
 * one cannot mount. What programs do is done by programs: sh, and children. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "mount/mount.h"
#include "tests/lib/fake_store.h"

enum { LIMIT_S = 300, INTERRUPT_MS = 100 };

static char place[] = "/tmp/test_mount.XXXXXX";

/* The daemon is another process, as it is in life: one that used its own mount
 * could not even be killed. `control` goes to a thread of it that looks into
 * the store. */
static pid_t daemon_pid;
static int control = -1;
static bool usable;

struct answer {
    struct fake_count count;
    size_t keys;
};

struct daemon {
    struct fake_store *store;
    int control;
};

static void *daemon_control(void *arg)
{
    struct daemon *d = arg;
    char command;
    while (read(d->control, &command, 1) == 1) {
        struct answer a = {.count = fake_store_count(d->store),
                           .keys = fake_store_keys(d->store, 0)};
        if (command == 'c') {
            fake_store_clear(d->store);
        } else if (command == 's' || command == 'u') {
            fake_store_stick(d->store, command == 's');
        }
        if (write(d->control, &a, sizeof a) != sizeof a) {
            break;
        }
    }
    return NULL;
}

static void ready(void *arg)
{
    struct daemon *d = arg;
    struct answer a = {0};
    pthread_t thread;
    pthread_create(&thread, NULL, daemon_control, d);
    pthread_detach(thread);
    ssize_t ignored = write(d->control, &a, sizeof a);
    (void)ignored;
}

static int daemon_main(int fd)
{
    struct daemon d = {.store = fake_store_new(4), .control = fd};
    struct fs *fs = fs_new(fake_store_seam(d.store));
    struct mnt_options o = {.mountpoint = place,
                            .ready = ready,
                            .ready_arg = &d,
                            .allow_other = getuid() == 0,
                            .interrupt_ms = INTERRUPT_MS};
    struct fs_call c;
    fs_call_begin(&c, fs, getuid(), getgid());
    enum err rc = fs_mkfs(&c);
    fs_call_end(&c);
    int status = rc == ERR_OK ? mnt_run(&o, fs) : 1;
    fs_free(fs);
    return status;
}

static struct answer ask(char command)
{
    struct answer a = {0};
    if (command != 0) {
        assert_int_equal(write(control, &command, 1), 1);
    }
    usable = read(control, &a, sizeof a) == sizeof a;
    return a;
}

static void start(void)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair),
                     0);
    daemon_pid = fork();
    if (daemon_pid == 0) {
        /* Should we be killed: it unmounts, and is not stuck in that, either.
         */
        alarm(LIMIT_S);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        close(pair[0]);
        _exit(daemon_main(pair[1]));
    }
    close(pair[1]);
    control = pair[0];
    ask(0);
}

static int stop(int signal_number)
{
    int rc = -1;
    kill(daemon_pid, signal_number);
    assert_int_equal(waitpid(daemon_pid, &rc, 0), daemon_pid);
    close(control);
    return rc;
}

static bool is_live(void)
{
    struct stat at, above;
    return stat(place, &at) == 0 && stat("/tmp", &above) == 0 &&
           at.st_dev != above.st_dev;
}

static int setup(void **state)
{
    (void)state;
    start();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    int rc = stop(SIGTERM);
    return usable && (rc != 0 || is_live());
}

/* Runs with the mountpoint as its directory; 0 if all went well. */
static int sh(const char *script)
{
    char *line = mem_printf("cd %s && { %s\n} 2>&1", place, script);
    int rc = system(line);
    mem_free(line);
    return rc;
}

#define NEED_MOUNT()                                                           \
    do {                                                                       \
        (void)state;                                                           \
        if (!usable) {                                                         \
            skip();                                                            \
        }                                                                      \
    } while (0)

static void echo_and_cat_are_put_append_and_get(void **state)
{
    NEED_MOUNT();
    assert_int_equal(sh("echo first content > f"), 0);
    ask('c');
    assert_int_equal(sh("echo hello > f"), 0);
    assert_string_equal(ask('n').count.content, "PUT 6 ");
    assert_int_equal(ask('n').count.writes, 1);
    ask('c');
    assert_int_equal(sh("echo more >> f"), 0);
    assert_string_equal(ask('n').count.content, "APPEND 5 ");
    assert_int_equal(ask('n').count.writes, 1);
    ask('c');
    assert_int_equal(sh("test \"$(cat f)\" = \"$(printf 'hello\\nmore')\""), 0);
    assert_int_equal(ask('n').count.writes, 0);
    ask('c');
    assert_int_equal(sh("echo hi > new"), 0); /* create, then put */
    assert_string_equal(ask('n').count.content, "PUT 3 ");
    ask('c');
    assert_int_equal(sh(": > f && test ! -s f"), 0);
    assert_string_equal(ask('n').count.content, "TRUNCATE 0 ");
    assert_int_equal(sh("rm f new"), 0);
}

/* close() has returned: whoever looks from elsewhere sees an empty file. */
static void a_closed_truncation_is_done(void **state)
{
    NEED_MOUNT();
    assert_int_equal(sh("echo content > f"), 0);
    ask('c');
    char path[64];
    snprintf(path, sizeof path, "%s/f", place);
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_string_equal(ask('n').count.content, "");
    int copy = dup(fd);
    assert_int_equal(close(fd), 0);
    assert_string_equal(ask('n').count.content, "");
    assert_int_equal(close(copy), 0);
    assert_string_equal(ask('n').count.content, "TRUNCATE 0 ");
    assert_int_equal(unlink(path), 0);
}

static void programs_find_a_filesystem(void **state)
{
    NEED_MOUNT();
    assert_int_equal(
        sh("set -e; mkdir -p a/b/c; echo x > a/b/c/f; ln a/b/c/f a/g\n"
           "ln -s b/c/f a/s; test \"$(cat a/s)\" = x\n"
           "test $(stat -c %h a/g) = 2; mv a/b/c/f a/h; test ! -e a/b/c/f\n"
           "! mv a a/b 2>/dev/null; ! rmdir a 2>/dev/null\n"
           "chmod 640 a/g; test $(stat -c %a a/h) = 640\n"
           "touch -d @1000000000.5 a/g; test $(stat -c %Y a/h) = 1000000000\n"
           "mkfifo a/p; test -p a/p; truncate -s 1M a/g\n"
           "test $(stat -c %s a/g) = 1048576\n"
           "dd if=/dev/urandom of=big bs=3M count=3 2>/dev/null\n"
           "cp big big2; cmp big big2; dd if=big of=/dev/null bs=1M "
           "2>/dev/null\n"
           "i=0; while [ $i -lt 300 ]; do : > a/n$i; i=$((i+1)); done\n"
           "test $(ls a | wc -l) = 305; rm -r a big big2\n"
           "test -z \"$(ls -A)\"; df . > /dev/null"),
        0);
    assert_int_equal(ask('n').keys, 1);
}

static void appends_from_processes_at_once_all_arrive(void **state)
{
    NEED_MOUNT();
    assert_int_equal(
        sh("set -e; for p in 1 2 3 4; do (i=0; while [ $i -lt 50 ]; do echo "
           "$p-$i >> log; i=$((i+1)); done) & done; wait\n"
           "test $(sort -u log | wc -l) = 200; test $(wc -l < log) = 200; "
           "rm log"),
        0);
}

static void an_unlinked_open_file_can_be_used(void **state)
{
    NEED_MOUNT();
    char path[64], got[8] = "";
    snprintf(path, sizeof path, "%s/f", place);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(write(fd, "abc", 3), 3);
    assert_int_equal(pread(fd, got, 8, 0), 3);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_nlink, 0);
    assert_int_equal(st.st_size, 3);
    assert_int_equal(close(fd), 0);
}

static void files_can_be_mapped_privately(void **state)
{
    NEED_MOUNT();
    assert_int_equal(sh("printf mapped > f"), 0);
    char path[64];
    snprintf(path, sizeof path, "%s/f", place);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    void *p = mmap(NULL, 6, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(p != MAP_FAILED);
    assert_memory_equal(p, "mapped", 6);
    munmap(p, 6);
    p = mmap(NULL, 6, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(p == MAP_FAILED);
    assert_int_equal(errno, ENODEV);
    close(fd);
    unlink(path);
}

/* Wrote to by another than root, a program loses what it was trusted with. */
static void set_user_id_goes_when_a_user_writes(void **state)
{
    NEED_MOUNT();
    if (getuid() != 0) {
        skip();
    }
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "%s/f", place);
    assert_int_equal(sh("echo x > f; chown 1000:1000 f; chmod 6777 f"), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int ok = setgid(1000) == 0 && setuid(1000) == 0;
        int fd = open(path, O_WRONLY);
        _exit(ok && fd >= 0 && write(fd, "y", 1) == 1 ? 0 : 1);
    }
    int rc;
    assert_int_equal(waitpid(pid, &rc, 0), pid);
    assert_int_equal(rc, 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0777);
    unlink(path);
}

/* A call of another process has come to the stuck store, and waits there. */
static bool somebody_waits(void)
{
    for (int i = 0; i < 30000 && usable; i++) {
        if (ask('?').count.waiting > 0) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

/* A signal alone disturbs nobody; a cluster that is gone can be left. */
static void a_stuck_call_ends_on_a_signal(void **state)
{
    NEED_MOUNT();
    ask('s');
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct stat st;
        char path[64];
        snprintf(path, sizeof path, "%s/x", place);
        stat(path, &st);
        _exit(0);
    }
    bool waits = somebody_waits();
    kill(pid, SIGKILL);
    int rc;
    assert_int_equal(waitpid(pid, &rc, 0), pid); /* or hangs for ever */
    ask('u');
    assert_true(waits);
    struct stat st;
    assert_int_equal(stat(place, &st), 0);
}

static void nothing(int number)
{
    (void)number;
}

/* Wrong if a call that takes long fails because its process got a signal that
 * does not end it: a timer's, or Ctrl-Z and fg. SIGTERM ends it, though it is
 * handled, and came later. */
static void a_stuck_call_outlasts_other_signals(void **state)
{
    NEED_MOUNT();
    ask('s');
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct sigaction act = {.sa_handler = nothing};
        struct stat st;
        char path[64];
        snprintf(path, sizeof path, "%s/x", place);
        sigaction(SIGALRM, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        _exit(stat(path, &st) == 0 ? 0 : errno);
    }
    bool waits = somebody_waits();
    kill(pid, SIGALRM);
    kill(pid, SIGTSTP);
    usleep(5 * INTERRUPT_MS * 1000); /* the wrong one fails meanwhile */
    bool waited = waitpid(pid, NULL, WNOHANG) == 0 && somebody_waits();
    kill(pid, SIGTERM);
    kill(pid, SIGCONT);
    int rc = 0;
    assert_int_equal(waitpid(pid, &rc, 0), pid); /* or hangs for ever */
    ask('u');
    assert_true(waits && waited);
    assert_true(WIFEXITED(rc));
    assert_int_equal(WEXITSTATUS(rc), EINTR);
}

static void nothing_else_is_mounted_over_a_live_mount(void **state)
{
    NEED_MOUNT();
    struct mnt_options o = {.mountpoint = place};
    log_set_level(LOG_LEVEL_OFF);
    assert_int_equal(mnt_run(&o, NULL), 1);
    o.mountpoint = "/nonexistent/place";
    assert_int_equal(mnt_run(&o, NULL), 1);
    log_set_level(LOG_LEVEL_INFO);
}

/* With the cluster stuck and a call waiting in it, SIGTERM still unmounts. */
static void unmounting_does_not_wait_for_the_cluster(void **state)
{
    NEED_MOUNT();
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct stat st;
        char path[64];
        snprintf(path, sizeof path, "%s/x", place);
        for (;;) {
            stat(path, &st);
        }
    }
    ask('s');
    bool waits = somebody_waits();
    assert_int_equal(stop(SIGTERM), 0);
    assert_false(is_live());
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    start();
    assert_true(waits);
}

/* The daemon dies without a word; its mount answers ENOTCONN to everybody. */
static void a_dead_mount_is_mounted_over(void **state)
{
    NEED_MOUNT();
    struct stat st;
    stop(SIGKILL);
    assert_int_equal(stat(place, &st), -1);
    assert_int_equal(errno, ENOTCONN);
    start();
    assert_true(usable);
    assert_true(is_live());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(echo_and_cat_are_put_append_and_get),
        cmocka_unit_test(a_closed_truncation_is_done),
        cmocka_unit_test(programs_find_a_filesystem),
        cmocka_unit_test(appends_from_processes_at_once_all_arrive),
        cmocka_unit_test(an_unlinked_open_file_can_be_used),
        cmocka_unit_test(files_can_be_mapped_privately),
        cmocka_unit_test(set_user_id_goes_when_a_user_writes),
        cmocka_unit_test(a_stuck_call_ends_on_a_signal),
        cmocka_unit_test(a_stuck_call_outlasts_other_signals),
        cmocka_unit_test(nothing_else_is_mounted_over_a_live_mount),
        cmocka_unit_test(unmounting_does_not_wait_for_the_cluster),
        cmocka_unit_test(a_dead_mount_is_mounted_over),
    };
    alarm(LIMIT_S); /* whoever hangs, hangs no longer */
    if (mkdtemp(place) == NULL) {
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, setup, teardown);
    rmdir(place);
    return failed;
}
