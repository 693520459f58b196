/* limits DIR SECONDS: what this machine can do at best, in the terms of a
 * replicated log. Prints one JSON object:
 *   sync_us        pwrite of 224 bytes and fdatasync, one after the other, in a
 *                  file that was filled with zeros before (the median)
 *   syncs3_us      the same, while two other processes do so on the same disk
 *   ping_us        100 bytes there and back over TLS 1.3 on loopback (median)
 *   write_MBps     1 MiB pwrite, and fdatasync, one after the other
 *   writes3_MBps   three such files at once, all together
 * A commit by three replicas takes at least sync_us + 2 * ping_us: the client's
 * request and a follower's answer, and one sync (the leader's is meanwhile).
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    FILE_SIZE = 256 << 20,
    RECORD_SIZE = 224,
    BLOCK_SIZE = 1 << 20,
    PING_SIZE = 100,
    SAMPLES_MAX = 1 << 20,
    WRITERS = 3,
};

static const char *dir;
static double seconds;
static char block[BLOCK_SIZE];
static float samples[SAMPLES_MAX];

static void need(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double median_us(size_t count)
{
    need(count > 0, "limits: no sample");
    qsort(samples, count, sizeof *samples, compare);
    return samples[count / 2] * 1e6;
}

/* ---- the disk ---- */

static int file_make(uint32_t number)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/limits.%u", dir, number);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0, path);
    unlink(path);
    for (off_t at = 0; at < FILE_SIZE; at += BLOCK_SIZE) {
        need(pwrite(fd, block, BLOCK_SIZE, at) == BLOCK_SIZE, "fill");
    }
    need(fsync(fd) == 0, "fsync");
    return fd;
}

/* Writes `size` bytes and syncs, again and again; gives how often. */
static size_t write_and_sync(int fd, size_t size)
{
    size_t count = 0;
    double end = now_s() + seconds;
    for (off_t at = 0;; at += (off_t)size) {
        if (at + (off_t)size > FILE_SIZE) {
            at = 0;
        }
        double began = now_s();
        if (began >= end || count == SAMPLES_MAX) {
            return count;
        }
        need(pwrite(fd, block, size, at) == (ssize_t)size, "pwrite");
        need(fdatasync(fd) == 0, "fdatasync");
        samples[count++] = (float)(now_s() - began);
    }
}

/* By so many processes at once: their mean median in us, and all their bytes a
 * second in MB. */
static void disk_measure(uint32_t writers, size_t size, double *us,
                         double *mbps)
{
    double *each =
        mmap(NULL, sizeof(double) * 2 * WRITERS, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int fds[WRITERS];
    *us = *mbps = 0;
    for (uint32_t i = 0; i < writers; i++) {
        fds[i] = file_make(i);
    }
    for (uint32_t i = 0; i < writers; i++) {
        if (fork() == 0) {
            size_t count = write_and_sync(fds[i], size);
            each[2 * i] = median_us(count);
            each[2 * i + 1] = (double)(count * size) / seconds / 1e6;
            _exit(0);
        }
    }
    for (uint32_t i = 0; i < writers; i++) {
        wait(NULL);
        close(fds[i]);
    }
    for (uint32_t i = 0; i < writers; i++) {
        *us += each[2 * i] / writers;
        *mbps += each[2 * i + 1];
    }
    munmap(each, sizeof(double) * 2 * WRITERS);
}

/* ---- the net ---- */

static SSL_CTX *context_make(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    SSL_CTX *c = SSL_CTX_new(TLS_method());
    need(key != NULL && cert != NULL && c != NULL, "openssl");
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
    X509_set_pubkey(cert, key);
    need(X509_sign(cert, key, EVP_sha256()) > 0, "sign");
    SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION);
    SSL_CTX_use_certificate(c, cert);
    SSL_CTX_use_PrivateKey(c, key);
    return c;
}

static SSL *session_make(SSL_CTX *context, int fd, int is_server)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    need((is_server ? SSL_accept(ssl) : SSL_connect(ssl)) == 1, "handshake");
    return ssl;
}

static void echo(SSL_CTX *context, int listener)
{
    char bytes[PING_SIZE];
    SSL *ssl = session_make(context, accept(listener, NULL, NULL), 1);
    while (SSL_read(ssl, bytes, PING_SIZE) == PING_SIZE) {
        SSL_write(ssl, bytes, PING_SIZE);
    }
    _exit(0);
}

static double ping_us(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t at_size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    need(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 &&
             listen(listener, 1) == 0 &&
             getsockname(listener, (struct sockaddr *)&at, &at_size) == 0,
         "listen");
    SSL_CTX *context = context_make();
    pid_t other = fork();
    if (other == 0) {
        echo(context, listener);
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    need(connect(fd, (struct sockaddr *)&at, sizeof at) == 0, "connect");
    SSL *ssl = session_make(context, fd, 0);
    size_t count = 0;
    double end = now_s() + seconds;
    char bytes[PING_SIZE] = {0};
    for (double began = now_s(); began < end && count < SAMPLES_MAX;) {
        need(SSL_write(ssl, bytes, PING_SIZE) == PING_SIZE &&
                 SSL_read(ssl, bytes, PING_SIZE) == PING_SIZE,
             "ping");
        double ended = now_s();
        samples[count++] = (float)(ended - began);
        began = ended;
    }
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    return median_us(count);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: limits DIR SECONDS\n");
        return 2;
    }
    dir = argv[1];
    seconds = strtod(argv[2], NULL);
    for (size_t i = 0; i < sizeof block; i++) {
        block[i] = (char)rand();
    }
    double sync_us, syncs3_us, write_mbps, writes3_mbps, ignored;
    disk_measure(1, RECORD_SIZE, &sync_us, &ignored);
    disk_measure(WRITERS, RECORD_SIZE, &syncs3_us, &ignored);
    disk_measure(1, BLOCK_SIZE, &ignored, &write_mbps);
    disk_measure(WRITERS, BLOCK_SIZE, &ignored, &writes3_mbps);
    double ping = ping_us();
    printf("{\"what\": \"limits\", \"sync_us\": %.1f, \"syncs3_us\": %.1f, "
           "\"ping_us\": %.1f, \"write_MBps\": %.1f, \"writes3_MBps\": %.1f, "
           "\"commit_us\": %.1f}\n",
           sync_us, syncs3_us, ping, write_mbps, writes3_mbps,
           sync_us + 2 * ping);
    return 0;
}
