#include "cmd/process.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"

enum {
    ARGS_MAX = 64,
    STAT_SIZE = 1024,
    READY_FD = 3,
    ENDS_MS = 10000,
    LOOK_MS = 10,
    PF_EXITING = 0x4, /* include/linux/sched.h */
};

/* The fields of /proc/PID/stat after the command's name, which may itself hold
 * spaces and brackets. */
static bool stat_fields(pid_t pid, char text[STAT_SIZE], char **fields)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t size = read(fd, text, STAT_SIZE - 1);
    close(fd);
    if (size <= 0) {
        return false;
    }
    text[size] = 0;
    *fields = strrchr(text, ')');
    return *fields != NULL;
}

/* Of proc(5): the state (3), PF_* of the kernel (9), how many threads (20), and
 * when it started, in ticks since boot (22). */
struct looks {
    char state;
    unsigned flags;
    unsigned threads;
    unsigned long long start;
};

static bool look_at(pid_t pid, struct looks *l)
{
    char text[STAT_SIZE];
    char *fields = NULL;
    return stat_fields(pid, text, &fields) &&
           sscanf(fields,
                  ") %c %*d %*d %*d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d "
                  "%*d %*d %u %*d %llu",
                  &l->state, &l->flags, &l->threads, &l->start) == 4;
}

/* The signals that wait for the process or for its first thread. */
static bool kill_pends(pid_t pid)
{
    char path[64], line[128];
    unsigned long long set = 0, pending = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "re");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "SigPnd: %llx", &set) == 1 ||
            sscanf(line, "ShdPnd: %llx", &set) == 1) {
            pending |= set;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return (pending >> (SIGKILL - 1) & 1) != 0;
}

enum life { LIFE_NONE, LIFE_ENDS, LIFE_RUNS };

/* Who was killed may take seconds to end, as when a thread of it waits for the
 * disk: it holds its ports and locks until then. A zombie without threads has
 * ended. */
static enum life life_of(pid_t pid, unsigned long long start)
{
    struct looks l;
    if (!look_at(pid, &l) || l.start != start) {
        return LIFE_NONE;
    }
    if (l.state == 'Z' || l.state == 'X') {
        return l.threads > 1 ? LIFE_ENDS : LIFE_NONE;
    }
    return (l.flags & PF_EXITING) != 0 || kill_pends(pid) ? LIFE_ENDS
                                                          : LIFE_RUNS;
}

uint64_t process_cpu_ticks(pid_t pid)
{
    char text[STAT_SIZE];
    char *fields = NULL;
    unsigned long long user = 0, system = 0;
    if (!stat_fields(pid, text, &fields) ||
        sscanf(fields,
               ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user,
               &system) != 2) {
        return 0;
    }
    return user + system;
}

pid_t process_alive(const char *pid_file)
{
    FILE *f = fopen(pid_file, "re");
    if (f == NULL) {
        return 0;
    }
    int pid = 0;
    unsigned long long start = 0;
    int fields = fscanf(f, "%d %llu", &pid, &start);
    fclose(f);
    if (fields != 2 || pid <= 1) {
        return 0;
    }
    enum life life = life_of(pid, start);
    for (int waited_ms = 0; life == LIFE_ENDS && waited_ms < ENDS_MS;
         waited_ms += LOOK_MS) {
        usleep(LOOK_MS * 1000);
        life = life_of(pid, start);
    }
    return life == LIFE_NONE ? 0 : pid;
}

static bool pid_file_write(const char *pid_file, pid_t pid)
{
    FILE *f = fopen(pid_file, "we");
    if (f == NULL) {
        return false;
    }
    struct looks l = {0};
    (void)look_at(pid, &l); /* if it ended already: nobody has that start */
    fprintf(f, "%d %llu\n", (int)pid, l.start);
    return fclose(f) == 0;
}

/* A process that needs none has /dev/null for one. */
static void pid_file_remove(const char *pid_file)
{
    struct stat st;
    if (lstat(pid_file, &st) == 0 && S_ISREG(st.st_mode)) {
        unlink(pid_file);
    }
}

static void close_if_open(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

/* In the child, between fork and exec: only async-signal-safe calls. Waits for
 * the word that the pid file is written: a parent that dies before that leaves
 * no process behind that nobody knows. */
static void child(char **args, int log_fd, int ready_fd, int go_fd)
{
    char byte;
    if (read(go_fd, &byte, 1) != 1) {
        _exit(127);
    }
    setsid();
    int null_fd = open("/dev/null", O_RDONLY);
    dup2(null_fd, 0);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    if (ready_fd == READY_FD) {
        fcntl(READY_FD, F_SETFD, 0);
    } else {
        dup2(ready_fd, READY_FD);
    }
    closefrom(READY_FD + 1);
    execv("/proc/self/exe", args);
    _exit(127);
}

/* The last line that the child printed, and the error that it logged before it;
 * whoever repeats it says who speaks. */
static void last_line(const char *log_file, off_t from, char *words,
                      size_t words_size)
{
    char text[4096] = {0};
    int fd = open(log_file, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    if (end - from > (off_t)sizeof text - 1) {
        from = end - (off_t)sizeof text + 1;
    }
    ssize_t size = fd < 0 ? 0 : pread(fd, text, sizeof text - 1, from);
    if (fd >= 0) {
        close(fd);
    }
    while (size > 0 && text[size - 1] == '\n') {
        text[--size] = 0;
    }
    char *line = strrchr(text, '\n');
    const char *cause = "";
    if (line != NULL) {
        *line++ = 0;
        /* "TIME error FOLDER: what and where", logged just before. */
        char *before = strrchr(text, '\n');
        before = strstr(before == NULL ? text : before, " error ");
        cause = before == NULL ? "" : before + strlen(" error ");
    } else {
        line = text;
    }
    if (strncmp(line, "flotilla: ", 10) == 0) {
        line += 10;
    }
    snprintf(words, words_size, "%s%s%s%s", line,
             *line == 0 ? "it printed nothing" : "", *cause == 0 ? "" : ": ",
             cause);
}

uint64_t process_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

enum ready { READY_YES, READY_ENDED, READY_LATE };

static enum ready wait_ready(int fd, uint32_t timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte = 0;
    int n;
    uint64_t end = process_now_ms() + timeout_ms;
    do {
        uint64_t now = process_now_ms();
        n = poll(&p, 1, now < end ? (int)(end - now) : 0);
    } while (n < 0 && errno == EINTR);
    if (n == 0) {
        return READY_LATE;
    }
    /* A child that ended closes the pipe: readable, and empty. */
    return n == 1 && read(fd, &byte, 1) == 1 ? READY_YES : READY_ENDED;
}

/* Forks; the child waits until `go` gets a byte. 0: errno says why not. */
static pid_t start_child(char **args, const char *log_file, int *ready, int *go)
{
    int ready_pipe[2] = {-1, -1}, go_pipe[2] = {-1, -1};
    pid_t pid = -1;
    int log_fd =
        open(log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd >= 0 && pipe2(ready_pipe, O_CLOEXEC) == 0 &&
        pipe2(go_pipe, O_CLOEXEC) == 0) {
        pid = fork();
    }
    if (pid == 0) {
        close(go_pipe[1]);
        child(args, log_fd, ready_pipe[1], go_pipe[0]);
    }
    int why = errno;
    close_if_open(log_fd);
    close_if_open(ready_pipe[1]);
    close_if_open(go_pipe[0]);
    if (pid < 0) {
        close_if_open(ready_pipe[0]);
        close_if_open(go_pipe[1]);
        errno = why;
        return 0;
    }
    *ready = ready_pipe[0];
    *go = go_pipe[1];
    return pid;
}

pid_t process_spawn(const char *const *argv, const char *log_file,
                    const char *pid_file, uint32_t timeout_ms, char *words,
                    size_t words_size)
{
    /* The option goes right behind the subcommand's name: options end at the
     * first word that is none. */
    static char program[] = "flotilla", option[] = "--ready-fd", fd[] = "3";
    char *args[ARGS_MAX] = {program, (char *)(uintptr_t)argv[0], option, fd};
    for (uint32_t i = 1; argv[i] != NULL; i++) {
        CHECK(i < ARGS_MAX - 4);
        args[i + 3] = (char *)(uintptr_t)argv[i];
    }

    int ready_fd, go_fd;
    struct stat st;
    off_t log_from = stat(log_file, &st) == 0 ? st.st_size : 0;
    pid_t pid = start_child(args, log_file, &ready_fd, &go_fd);
    if (pid == 0) {
        snprintf(words, words_size,
                 "cannot start a process with its log %s: %s", log_file,
                 strerror(errno));
        return 0;
    }
    bool known = pid_file_write(pid_file, pid);
    int why = errno;
    enum ready ready = READY_ENDED;
    if (known && write(go_fd, "g", 1) == 1) {
        ready = wait_ready(ready_fd, timeout_ms);
    }
    close(go_fd);
    close(ready_fd);
    if (ready == READY_YES) {
        return pid;
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    if (!known) {
        snprintf(words, words_size, "cannot write %s: %s", pid_file,
                 strerror(why));
        return 0;
    }
    pid_file_remove(pid_file);
    int size = ready == READY_LATE
                   ? snprintf(words, words_size,
                              "not ready after %u s, its last words: ",
                              timeout_ms / 1000)
                   : 0;
    last_line(log_file, log_from, words + size, words_size - (size_t)size);
    return 0;
}

void process_ready(int fd)
{
    if (fd >= 0) {
        /* Nobody to tell if the parent has gone. */
        ssize_t ignored = write(fd, "r", 1);
        (void)ignored;
        close(fd);
    }
}

static void pause_ms(long ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

uint32_t process_stop_all(char (*pid_files)[PATH_MAX], uint32_t count,
                          uint32_t grace_ms)
{
    uint32_t stopped = 0;
    for (uint32_t i = 0; i < count; i++) {
        pid_t pid = process_alive(pid_files[i]);
        if (pid != 0) {
            kill(pid, SIGTERM);
            stopped++;
        }
    }
    uint64_t end = process_now_ms() + grace_ms;
    for (uint32_t i = 0; i < count; i++) {
        pid_t pid;
        while ((pid = process_alive(pid_files[i])) != 0) {
            if (process_now_ms() >= end) {
                kill(pid, SIGKILL);
            }
            /* Reaps it if it is our child; harmless if not. */
            waitpid(pid, NULL, WNOHANG);
            pause_ms(10);
        }
        pid_file_remove(pid_files[i]);
    }
    return stopped;
}

bool process_stop(const char *pid_file, uint32_t grace_ms)
{
    char one[1][PATH_MAX];
    snprintf(one[0], sizeof one[0], "%s", pid_file);
    return process_stop_all(one, 1, grace_ms) == 1;
}

bool process_port_free(uint32_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return true; /* not known: who listens will say */
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    bool is_free =
        bind(fd, (struct sockaddr *)(void *)&address, sizeof address) == 0 ||
        errno != EADDRINUSE;
    close(fd);
    return is_free;
}
