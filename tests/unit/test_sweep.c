/* Files whose names are gone are freed piece by piece, and all of them in the
 * end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "raft/storage/sweep.h"

enum { MIB = 1 << 20, PIECE = 4 * MIB, FILES = 20 };

/* Sparse: only its length is looked at. */
static int nameless(off_t size)
{
    char path[] = "/tmp/flotilla-sweep.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(ftruncate(fd, size), 0);
    return fd;
}

static off_t size_of(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    return st.st_size;
}

static void a_file_goes_in_pieces(void **state)
{
    (void)state;
    struct sweep *s = sweep_new();
    int fd = nameless(64 * MIB), watched = dup(fd);
    sweep_file(s, fd);
    off_t last = 64 * MIB;
    time_t end = time(NULL) + 30;
    while (last > PIECE && time(NULL) < end) {
        off_t size = size_of(watched);
        assert_true(size <= last);
        assert_int_equal(size % PIECE, 0);
        last = size;
        usleep(100);
    }
    assert_int_equal(last, PIECE); /* which goes with the last descriptor */
    sweep_free(s);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    close(watched);
}

static void all_are_closed_in_the_end(void **state)
{
    (void)state;
    struct sweep *s = sweep_new();
    int fds[FILES];
    for (int i = 0; i < FILES; i++) {
        fds[i] = nameless(i * MIB);
    }
    for (int i = 0; i < FILES; i++) {
        sweep_file(s, fds[i]);
    }
    sweep_free(s);
    for (int i = 0; i < FILES; i++) {
        assert_int_equal(fcntl(fds[i], F_GETFD), -1);
    }
}

/* Wrong if each removed file holds a descriptor: then a process that removes a
 * thousand can open no more. */
static void few_descriptors_are_held(void **state)
{
    (void)state;
    enum { MANY = 200 };
    struct sweep *s = sweep_new();
    uint32_t open_count = 0;
    int fds[MANY];
    for (int i = 0; i < MANY; i++) {
        fds[i] = nameless(64 * 1024 * (off_t)MIB); /* minutes of work */
    }
    for (int i = 0; i < MANY; i++) {
        sweep_file(s, fds[i]);
    }
    for (int i = 0; i < MANY; i++) {
        open_count += fcntl(fds[i], F_GETFD) != -1;
    }
    assert_in_range(open_count, 1, 65);
    sweep_free(s);
}

static void nothing_to_do_ends_too(void **state)
{
    (void)state;
    sweep_free(sweep_new());
    sweep_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_goes_in_pieces),
        cmocka_unit_test(all_are_closed_in_the_end),
        cmocka_unit_test(few_descriptors_are_held),
        cmocka_unit_test(nothing_to_do_ends_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
