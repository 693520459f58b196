/* Invariants:
 *
 *  1. `lock` guards what is below it, and is never held while the disk works.
 *  2. One piece at a time, and then a rest that is REST_FACTOR times as long as
 *     the piece took: who syncs meanwhile waits for one piece at most, and a
 *     slow disk gets more time.
 *  3. The thread begins with the first file: most processes never need it.
 *  4. At most FILES_MAX files wait: each holds a descriptor. */
#include "raft/storage/sweep.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/mem.h"

enum {
    PIECE_SIZE = 4 << 20,
    REST_FACTOR = 8,
    REST_MAX_US = 200000,
    FILES_MAX = 64,
};

struct sweep_entry {
    int fd;
    struct sweep_entry *next;
};

struct sweep {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more; /* a file, or `ending` */
    bool running;        /* 3 */
    bool ending;
    struct sweep_entry *first, **last;
    uint32_t count;
};

static uint64_t now_us(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static struct timespec after(uint64_t delay_us)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    uint64_t ns = (uint64_t)t.tv_nsec + delay_us * 1000;
    t.tv_sec += (time_t)(ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    return t;
}

/* False when somebody waits for the end of it all. */
static bool rest(struct sweep *s, uint64_t us)
{
    struct timespec until = after(us < REST_MAX_US ? us : REST_MAX_US);
    int code = 0;
    pthread_mutex_lock(&s->lock);
    while (!s->ending && code == 0) {
        code = pthread_cond_timedwait(&s->more, &s->lock, &until);
    }
    bool go_on = !s->ending;
    pthread_mutex_unlock(&s->lock);
    return go_on;
}

/* A piece that cannot be cut off goes with the rest of them, when the file is
 * closed. */
static void shrink(struct sweep *s, int fd)
{
    struct stat st;
    off_t size = fstat(fd, &st) == 0 ? st.st_size : 0;
    bool patient = true;
    while (patient && size > PIECE_SIZE) {
        uint64_t begun_us = now_us();
        size -= PIECE_SIZE;
        patient = ftruncate(fd, size) == 0 &&
                  rest(s, (now_us() - begun_us) * REST_FACTOR);
    }
    close(fd);
}

static void *run(void *arg)
{
    struct sweep *s = arg;
    pthread_mutex_lock(&s->lock);
    while (s->first != NULL || !s->ending) {
        struct sweep_entry *e = s->first;
        if (e == NULL) {
            pthread_cond_wait(&s->more, &s->lock);
            continue;
        }
        s->first = e->next;
        s->last = s->first == NULL ? &s->first : s->last;
        s->count--;
        pthread_mutex_unlock(&s->lock);
        shrink(s, e->fd);
        mem_free(e);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Signals are the loop's; a new thread inherits this thread's mask. */
static bool start(struct sweep *s)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) {
        pthread_setname_np(s->thread, "sweep");
    }
    return code == 0;
}

struct sweep *sweep_new(void)
{
    struct sweep *s = mem_alloc(sizeof *s);
    pthread_condattr_t attr;
    CHECK(pthread_condattr_init(&attr) == 0);
    CHECK(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    CHECK(pthread_cond_init(&s->more, &attr) == 0);
    pthread_condattr_destroy(&attr);
    CHECK(pthread_mutex_init(&s->lock, NULL) == 0);
    s->last = &s->first;
    return s;
}

void sweep_file(struct sweep *s, int fd)
{
    pthread_mutex_lock(&s->lock);
    s->running = s->running || start(s);
    bool taken = s->running && s->count < FILES_MAX;
    if (taken) {
        struct sweep_entry *e = mem_alloc(sizeof *e);
        e->fd = fd;
        *s->last = e;
        s->last = &e->next;
        s->count++;
        pthread_cond_signal(&s->more);
    }
    pthread_mutex_unlock(&s->lock);
    if (!taken) {
        close(fd); /* all of it at once, then */
    }
}

void sweep_free(struct sweep *s)
{
    if (s == NULL) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    pthread_cond_signal(&s->more);
    bool running = s->running;
    pthread_mutex_unlock(&s->lock);
    if (running) {
        CHECK(pthread_join(s->thread, NULL) == 0);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->more);
    mem_free(s);
}
