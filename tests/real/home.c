/* See home.h. A run's directory has the file "runner", locked as long as the
 * runner lives; an orderly end removes it. So a directory that has it,
 * unlocked, is of a runner that was killed; one without it is of a row that
 * failed. */
#include "tests/real/home.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "tests/real/control.h"
#include "transport/tls.h"

#define HOME "/tmp/flotilla-labs."

enum {
    PORT_FIRST = 20000,
    PORT_COUNT = 12000, /* below those that the kernel gives away */
    GROUPS = 8,
    CERTIFICATE_DAYS = 2,
};

static volatile sig_atomic_t interrupted;
static char home[64];
static char row_dir[PATH_MAX];
static char certs_dir[PATH_MAX];
static char program[PATH_MAX];

/* ---- directories, certificates, ports ---- */

static bool make_certificate(const char *name, const char *unit)
{
    struct tls_identity who = {.name = name,
                               .unit = unit,
                               .hosts = "127.0.0.1",
                               .days = CERTIFICATE_DAYS};
    return tls_make_certificate(certs_dir, &who) == ERR_OK;
}

static bool make_certificates(void)
{
    bool ok = mkdir(certs_dir, 0700) == 0 &&
              tls_make_ca(certs_dir, "labs", CERTIFICATE_DAYS) == ERR_OK &&
              make_certificate("client", "client") &&
              make_certificate("admin", "admin");
    for (uint32_t group = 0; group <= GROUPS && ok; group++) {
        char name[16], unit[32];
        snprintf(name, sizeof name, "g%u", group);
        snprintf(unit, sizeof unit, "server:%u", group);
        ok = make_certificate(name, unit);
    }
    return ok;
}

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

bool home_interrupted(void)
{
    return interrupted != 0;
}

/* Calls that wait return then: no SA_RESTART. */
static void catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void remove_all(const char *dir)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void lock_path(const char *dir, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/runner", dir);
}

/* Locked before it has its name, so that nobody takes us for dead. */
static bool lock_take(void)
{
    char path[PATH_MAX], early[PATH_MAX];
    lock_path(home, path);
    snprintf(early, sizeof early, "%s/early", home);
    int fd = open(early, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return fd >= 0 && flock(fd, LOCK_EX) == 0 && rename(early, path) == 0;
}

static bool is_dead(const char *dir)
{
    char path[PATH_MAX];
    lock_path(dir, path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool dead = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return dead;
}

/* What runners that were killed have left. */
static void remove_dead(void)
{
    glob_t found;
    if (glob(HOME "*", GLOB_NOSORT, NULL, &found) != 0) {
        return;
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        if (is_dead(found.gl_pathv[i])) {
            remove_all(found.gl_pathv[i]);
        }
    }
    globfree(&found);
}

bool home_make(void)
{
    catch_interrupts();
    ssize_t size = readlink("/proc/self/exe", program, sizeof program - 32);
    snprintf(home, sizeof home, HOME "XXXXXX");
    remove_dead();
    if (size <= 0 || mkdtemp(home) == NULL || !lock_take()) {
        fprintf(stderr, "labs: cannot make a directory in /tmp: %s\n",
                strerror(errno));
        return false;
    }
    strcpy(strrchr(program, '/'), "/labs_node");
    snprintf(certs_dir, sizeof certs_dir, "%s/certs", home);
    if (!make_certificates()) {
        fprintf(stderr, "labs: cannot make certificates in %s\n", certs_dir);
        return false;
    }
    return true;
}

void home_remove(void)
{
    char path[PATH_MAX];
    lock_path(home, path);
    remove_all(certs_dir);
    unlink(path);
    rmdir(home);
}

const char *home_row_make(const char *row)
{
    snprintf(row_dir, sizeof row_dir, "%s/%s", home, row);
    for (char *c = row_dir + strlen(home) + 1; *c != '\0'; c++) {
        *c = *c == '/' ? '-' : *c;
    }
    CHECK(mkdir(row_dir, 0700) == 0);
    return row_dir;
}

const char *home_row_dir(void)
{
    return row_dir;
}

void home_row_remove(void)
{
    remove_all(row_dir);
}

const char *home_certs(void)
{
    return certs_dir;
}

static bool port_is_free(uint32_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bool is_free = bind(fd, (struct sockaddr *)&at, sizeof at) == 0;
    close(fd);
    return is_free;
}

uint32_t home_ports(uint32_t count)
{
    static uint32_t next;
    if (next == 0) {
        next = (uint32_t)getpid() * REAL_NODES_MAX;
    }
    for (;;) {
        uint32_t first = PORT_FIRST + next % PORT_COUNT;
        uint32_t found = 0;
        while (found < count && port_is_free(first + found)) {
            found++;
        }
        next += REAL_NODES_MAX;
        if (found == count) {
            return first;
        }
    }
}

const char *home_program(void)
{
    return program;
}
