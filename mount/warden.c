/* The thread that ends what nobody waits for any more.
 *
 *  1. A signal to a process that waits for us is no reason to fail at once:
 *     programs take signals (timers, children, a resized window) and expect
 *     files not to notice. So an interrupted call has `interrupt_ms` to finish;
 *     then it is cancelled and answers EINTR, if the process is to end: that is
 *     how Ctrl-C ends a call that a cluster without a majority does not answer.
 *     Else it goes on, and we look again: the kernel tells us of the first
 *     signal only.
 *  2. SIGTERM, SIGINT and SIGHUP cancel all calls and end the session, so an
 *     unmount never waits for the cluster.
 *  3. The signal handler only writes to a descriptor. libfuse's loop looks
 *     whether it shall end when its semaphore is interrupted: so the main
 *     thread is sent SIGUSR2 until it has seen it. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "mount/mount_int.h"

enum { NUDGE_MS = 50, LOOK_MS = 200, WATCHED = 4 };

static const int watched[WATCHED] = {SIGTERM, SIGINT, SIGHUP, SIGUSR2};

struct mnt_warden {
    struct fs *fs;
    struct fuse_session *se;
    uint64_t grace_ms;
    pthread_t thread, main_thread;
    int wake_fd; /* deadlines changed, or `stop` */
    struct sigaction old[WATCHED];

    pthread_mutex_t lock; /* guards the rest */
    struct mnt_call *waiting;
    bool stop;
};

static int signal_fd = -1; /* what the handler writes to */

static uint64_t now_ms(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void poke(int fd)
{
    uint64_t one = 1;
    ssize_t ignored = write(fd, &one, sizeof one);
    (void)ignored; /* full means that it is awake already */
}

static void on_signal(int number)
{
    int keep = errno;
    if (number != SIGUSR2) {
        poke(signal_fd);
    }
    errno = keep;
}

/* ---- calls ---- */

/* On a thread of libfuse's, with the request's lock held: only marks it. */
static void on_interrupt(fuse_req_t req, void *data)
{
    (void)req;
    struct mnt_call *call = data;
    struct mnt *mnt = fuse_req_userdata(call->req);
    struct mnt_warden *w = mnt->warden;
    pthread_mutex_lock(&w->lock);
    if (!call->interrupted) {
        call->interrupted = true;
        call->deadline_ms = now_ms() + w->grace_ms;
        call->next = w->waiting;
        call->prev = NULL;
        if (call->next != NULL) {
            call->next->prev = call;
        }
        w->waiting = call;
        poke(w->wake_fd);
    }
    pthread_mutex_unlock(&w->lock);
}

void mnt_begin(struct mnt_call *call, fuse_req_t req)
{
    struct mnt *mnt = fuse_req_userdata(req);
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    fs_call_begin(&call->fs, mnt->fs, ctx->uid, ctx->gid);
    call->req = req;
    call->interrupted = false;
    fuse_req_interrupt_func(req, on_interrupt, call);
}

void mnt_end(struct mnt_call *call)
{
    struct mnt *mnt = fuse_req_userdata(call->req);
    struct mnt_warden *w = mnt->warden;
    /* Takes the request's lock: on_interrupt() is not running after it. */
    fuse_req_interrupt_func(call->req, NULL, NULL);
    pthread_mutex_lock(&w->lock);
    if (call->interrupted) {
        if (call->next != NULL) {
            call->next->prev = call->prev;
        }
        if (call->prev != NULL) {
            call->prev->next = call->next;
        } else {
            w->waiting = call->next;
        }
    }
    pthread_mutex_unlock(&w->lock);
    fs_call_end(&call->fs);
}

/* Cancels who is over its time. Gives the pause until the next, -1 for none. */
static int cancel_due(struct mnt_warden *w, bool *stop)
{
    uint64_t now = now_ms(), next = UINT64_MAX;
    pthread_mutex_lock(&w->lock);
    for (struct mnt_call *c = w->waiting; c != NULL; c = c->next) {
        if (c->deadline_ms <= now) {
            bool ends = mnt_shall_end(fuse_req_ctx(c->req)->pid);
            if (ends) {
                fs_call_cancel(&c->fs);
            }
            c->deadline_ms = ends ? UINT64_MAX : now + LOOK_MS;
        }
        next = c->deadline_ms < next ? c->deadline_ms : next;
    }
    *stop = w->stop;
    pthread_mutex_unlock(&w->lock);
    return next == UINT64_MAX ? -1 : (int)(next - now);
}

/* ---- the thread ---- */

static bool drain(int fd)
{
    uint64_t count;
    return read(fd, &count, sizeof count) == sizeof count;
}

static void *warden_main(void *arg)
{
    struct mnt_warden *w = arg;
    bool ending = false, stop = false;
    for (;;) {
        int pause = cancel_due(w, &stop);
        if (stop) {
            return NULL;
        }
        if (ending) {
            fuse_session_exit(w->se);
            pthread_kill(w->main_thread, SIGUSR2);
            pause = NUDGE_MS;
        }
        struct pollfd fds[2] = {{.fd = w->wake_fd, .events = POLLIN},
                                {.fd = signal_fd, .events = POLLIN}};
        poll(fds, 2, pause);
        drain(w->wake_fd);
        if (drain(signal_fd) && !ending) {
            log_info("mount", "a signal asks to unmount");
            fs_cancel_all(w->fs);
            ending = true;
        }
    }
}

static void signals_take(struct mnt_warden *w)
{
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_handler = on_signal;
    sigemptyset(&act.sa_mask);
    for (int i = 0; i < WATCHED; i++) {
        CHECK(sigaction(watched[i], &act, &w->old[i]) == 0);
    }
}

/* The warden's thread takes no signals itself: poll() would only return. */
static void thread_start(struct mnt_warden *w)
{
    sigset_t all, old;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_BLOCK, &all, &old) == 0);
    CHECK(pthread_create(&w->thread, NULL, warden_main, w) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
}

struct mnt_warden *mnt_warden_new(struct mnt *mnt, struct fuse_session *se)
{
    struct mnt_warden *w = mem_alloc(sizeof *w);
    uint32_t grace_ms = mnt->options->interrupt_ms;
    w->fs = mnt->fs;
    w->se = se;
    w->grace_ms = grace_ms == 0 ? 1000 : grace_ms;
    w->main_thread = pthread_self();
    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    signal_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(w->wake_fd >= 0);
    CHECK(signal_fd >= 0);
    CHECK(pthread_mutex_init(&w->lock, NULL) == 0);
    signals_take(w);
    thread_start(w);
    return w;
}

void mnt_warden_free(struct mnt_warden *w)
{
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_mutex_unlock(&w->lock);
    poke(w->wake_fd);
    CHECK(pthread_join(w->thread, NULL) == 0);
    for (int i = 0; i < WATCHED; i++) {
        CHECK(sigaction(watched[i], &w->old[i], NULL) == 0);
    }
    close(w->wake_fd);
    close(signal_fd);
    signal_fd = -1;
    pthread_mutex_destroy(&w->lock);
    mem_free(w);
}
