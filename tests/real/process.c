#include "tests/real/process.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "tests/real/home.h"

uint64_t process_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- a machine that stands still ---- */

static uint64_t stood_still_us; /* atomic */

static void *watch(void *arg)
{
    uint64_t before_us = process_now_us();
    (void)arg;
    for (;;) {
        usleep(REAL_STILL_US / 20);
        uint64_t now_us = process_now_us();
        if (now_us - before_us > REAL_STILL_US) {
            __atomic_add_fetch(&stood_still_us, now_us - before_us,
                               __ATOMIC_RELAXED);
        }
        before_us = now_us;
    }
    return NULL;
}

uint64_t process_stood_still_us(void)
{
    static bool watched;
    pthread_t thread;
    if (!watched) {
        watched = true;
        CHECK(pthread_create(&thread, NULL, watch, NULL) == 0);
        pthread_detach(thread);
    }
    return __atomic_load_n(&stood_still_us, __ATOMIC_RELAXED);
}

/* ---- a process ---- */

static void problem(struct process *p, const char *words)
{
    if (p->problem[0] == '\0') {
        snprintf(p->problem, sizeof p->problem,
                 "server %u %s; its log is %s.log", p->node.number, words,
                 p->node.dir);
    }
}

void process_init(struct process *p)
{
    p->counts = real_counts_map(p->node.dir);
}

void process_fini(struct process *p)
{
    process_kill(p);
    __atomic_add_fetch(&stood_still_us, p->counts->stood_still_us,
                       __ATOMIC_RELAXED);
    real_counts_unmap(p->counts);
}

static void child(const struct process *p, int fd)
{
    char log[PATH_MAX + 8];
    snprintf(log, sizeof log, "%s.log", p->node.dir);
    int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int null_fd = open("/dev/null", O_RDWR);
    if (log_fd < 0 || dup2(null_fd, 0) < 0 || dup2(null_fd, 1) < 0 ||
        dup2(log_fd, 2) < 0 ||
        (fd != REAL_CONTROL_FD && dup2(fd, REAL_CONTROL_FD) < 0)) {
        _exit(127);
    }
    fcntl(REAL_CONTROL_FD, F_SETFD, 0);
    char *argv[] = {(char *)home_program(), NULL};
    execv(argv[0], argv);
    _exit(127);
}

void process_start(struct process *p)
{
    int pair[2];
    CHECK(p->pid == 0);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    p->pid = fork();
    CHECK(p->pid >= 0);
    if (p->pid == 0) {
        child(p, pair[1]);
    }
    close(pair[1]);
    p->fd = pair[0];
    p->problem[0] = '\0';
    ssize_t sent = send(p->fd, &p->node, sizeof p->node, MSG_NOSIGNAL);
    if (sent != (ssize_t)sizeof p->node) {
        problem(p, "does not start");
    }
}

bool process_await(struct process *p)
{
    struct real_note note;
    return process_answer(p, REAL_READY, &note);
}

static void reap(struct process *p)
{
    close(p->fd);
    waitpid(p->pid, NULL, 0);
    p->pid = 0;
}

void process_kill(struct process *p)
{
    struct real_note note;
    if (p->pid == 0) {
        return;
    }
    kill(p->pid, SIGKILL);
    /* What it said before: entries that it has applied. */
    while (process_hear(p, REAL_ANSWER_MS, &note)) {
        if (p->noted != NULL) {
            p->noted(p, &note);
        }
    }
    if (p->pid != 0) {
        reap(p);
    }
    p->problem[0] = '\0';
}

bool process_hear(struct process *p, int timeout_ms, struct real_note *note)
{
    struct pollfd in = {.fd = p->fd, .events = POLLIN};
    if (p->pid == 0 || poll(&in, 1, timeout_ms) <= 0) {
        return false;
    }
    if (recv(p->fd, note, sizeof *note, 0) != (ssize_t)sizeof *note) {
        reap(p);
        problem(p, "stopped without cause");
        return false;
    }
    return true;
}

void process_tell(struct process *p, const struct real_ask *ask)
{
    if (p->pid != 0 && send(p->fd, ask, sizeof *ask, MSG_NOSIGNAL) < 0) {
        problem(p, "does not listen");
    }
}

bool process_answer(struct process *p, enum real_note_kind kind,
                    struct real_note *note)
{
    uint64_t end_us = process_now_us() + REAL_ANSWER_MS * UINT64_C(1000);
    while (p->pid != 0 && process_now_us() < end_us) {
        if (!process_hear(p, 100, note)) {
            continue;
        }
        if (note->kind == kind) {
            return true;
        }
        p->noted(p, note);
    }
    problem(p, "does not answer");
    return false;
}

bool process_ask(struct process *p, const struct real_ask *ask,
                 enum real_note_kind kind, struct real_note *note)
{
    process_tell(p, ask);
    return process_answer(p, kind, note);
}

void process_hear_all(struct process *all, uint32_t count, uint64_t end_us)
{
    for (;;) {
        struct pollfd in[REAL_NODES_MAX];
        for (uint32_t i = 0; i < count; i++) {
            in[i] = (struct pollfd){.fd = all[i].pid != 0 ? all[i].fd : -1,
                                    .events = POLLIN};
        }
        uint64_t now_us = process_now_us();
        uint64_t left_us = end_us > now_us ? end_us - now_us : 0;
        struct timespec left = {.tv_sec = (time_t)(left_us / 1000000),
                                .tv_nsec = (long)(left_us % 1000000) * 1000};
        if (ppoll(in, count, &left, NULL) <= 0) {
            return;
        }
        for (uint32_t i = 0; i < count; i++) {
            struct real_note note;
            if (in[i].revents != 0 && process_hear(&all[i], 0, &note)) {
                all[i].noted(&all[i], &note);
            }
        }
    }
}
