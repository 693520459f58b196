/* labs: the rows of the labs' suite from seeds. See usage(). */
#include "tests/labs/labs.h"

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

extern const struct lab_table lab_raft_2a, lab_raft_2b, lab_raft_2c,
    lab_raft_2d, lab_kv_3a, lab_kv_3b, lab_shard_4a, lab_shard_4b, lab_later;

static const struct lab_table *const tables[] = {
    &lab_raft_2a, &lab_raft_2b,  &lab_raft_2c,  &lab_raft_2d, &lab_kv_3a,
    &lab_kv_3b,   &lab_shard_4a, &lab_shard_4b, &lab_later,
};

enum { TABLES = sizeof tables / sizeof *tables, FAILURES_TOLD = 3 };

static const char usage_text[] =
    "usage: labs [--seeds N] [--first S] [--seed S] [--stop] [--list] "
    "[--parts]\n"
    "            [WHICH]...\n"
    "\n"
    "Runs rows of the labs' suite, each over N seeds (100) from seed S (1) "
    "on;\n"
    "--seed runs one seed, twice, with its trace. WHICH is a part (2B), a row\n"
    "(R12), or text in a name (TestBackup2B, Backup); without it, all run.\n"
    "--stop ends a row at its first seed that fails. --list and --parts print\n"
    "what there is. A row's line is the labs': "
    "virtual\n"
    "seconds, peers, RPCs, bytes in RPCs, entries; medians over the seeds.\n"
    "Exit status: 0 all passed, 1 a row failed, 2 usage.\n";

struct options {
    uint64_t first, seeds;
    bool one, stop;
};

/* What a row's seeds gave. */
struct tally {
    uint64_t seeds, failed;
    uint32_t peers;
    uint64_t *rpcs, *bytes, *entries, *milliseconds;
};

/* Of all rows and seeds, without the seeds that were run again. */
static double virtual_seconds;

/* For the handler of a failed check: what is running. */
static const struct lab_row *current_row;
static uint64_t current_seed;

static void on_signal(int number)
{
    char line[300];
    int size = snprintf(line, sizeof line,
                        "    seed %" PRIu64 ": the program died of signal %d\n"
                        "    replay it with: make labs SEED=%" PRIu64
                        " RUN=%s\n0 passed, 1 failed\n",
                        current_seed, number, current_seed, current_row->name);
    ssize_t written = write(STDOUT_FILENO, line, (size_t)size);
    (void)written;
    signal(number, SIG_DFL);
    raise(number);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *values, uint64_t count)
{
    qsort(values, count, sizeof *values, compare);
    return values[count / 2];
}

static void tally_init(struct tally *t, uint64_t seeds)
{
    *t = (struct tally){0};
    t->rpcs = mem_array(seeds, sizeof *t->rpcs);
    t->bytes = mem_array(seeds, sizeof *t->bytes);
    t->entries = mem_array(seeds, sizeof *t->entries);
    t->milliseconds = mem_array(seeds, sizeof *t->milliseconds);
}

static void tally_fini(struct tally *t)
{
    mem_free(t->rpcs);
    mem_free(t->bytes);
    mem_free(t->entries);
    mem_free(t->milliseconds);
}

static void tally_add(struct tally *t, const struct lab_run *run)
{
    t->rpcs[t->seeds] = run->rpcs;
    t->bytes[t->seeds] = run->bytes;
    t->entries[t->seeds] = run->entries;
    t->milliseconds[t->seeds] = (uint64_t)(run->seconds * 1000);
    virtual_seconds += run->seconds;
    t->peers = run->peers;
    t->seeds++;
    t->failed += run->failed;
}

static void tell_failure(const struct lab_row *row, const struct lab_run *run)
{
    printf("    seed %" PRIu64
           ": %s\n    replay it with: make labs SEED=%" PRIu64 " RUN=%s\n",
           run->seed, run->failure, run->seed, row->name);
}

static void run_seed(const struct lab_row *row, const struct options *o,
                     uint64_t seed, struct tally *t)
{
    struct lab_run run = {
        .seed = seed, .verbose = o->one, .tail = !o->one && t->failed == 0};
    current_seed = seed;
    row->run(&run);
    if (t->seeds == 0) {
        struct lab_run again = {.seed = seed};
        row->run(&again);
        /* Else no failure could be found again: a pointer, a clock or hash
         * order got in. */
        CHECK(run.hash == again.hash);
    }
    tally_add(t, &run);
    if (run.failed && t->failed <= FAILURES_TOLD) {
        tell_failure(row, &run);
    }
}

static bool run_row(const struct lab_table *table, const struct lab_row *row,
                    const struct options *o)
{
    uint32_t one_in = row->one_in > 0 ? row->one_in : 1;
    uint64_t seeds = (o->seeds + one_in - 1) / one_in;
    struct tally t;
    tally_init(&t, seeds);
    printf("Test (%s): %s ...\n", table->part, row->title);
    fflush(stdout);
    current_row = row;
    for (uint64_t i = 0; i < seeds && !(o->stop && t.failed > 0); i++) {
        run_seed(row, o, o->first + i, &t);
    }
    if (t.failed == 0) {
        printf("  ... Passed --  %4.1f  %u %4" PRIu64 " %7" PRIu64 " %4" PRIu64
               "   (%" PRIu64 " of %" PRIu64 " seeds)\n",
               (double)median(t.milliseconds, t.seeds) / 1000, t.peers,
               median(t.rpcs, t.seeds), median(t.bytes, t.seeds),
               median(t.entries, t.seeds), t.seeds, t.seeds);
    } else {
        printf("--- FAIL: %s (%s): %" PRIu64 " of %" PRIu64 " seeds passed\n",
               row->name, row->number, t.seeds - t.failed, t.seeds);
    }
    fflush(stdout);
    bool passed = t.failed == 0;
    tally_fini(&t);
    return passed;
}

static int run_all(const struct options *o, char **which, int count)
{
    uint32_t passed = 0;
    uint32_t failed = 0;
    for (uint32_t t = 0; t < TABLES; t++) {
        for (uint32_t i = 0; i < tables[t]->row_count; i++) {
            const struct lab_row *row = &tables[t]->rows[i];
            if (!lab_wanted(tables[t], row, which, count)) {
                continue;
            }
            if (run_row(tables[t], row, o)) {
                passed++;
            } else {
                failed++;
            }
        }
    }
    if (passed + failed == 0) {
        fprintf(stderr, "labs: no row has that name; see --list\n");
        return 2;
    }
    printf("simulated %.3f cluster-hours\n%u passed, %u failed\n",
           virtual_seconds / 3600, passed, failed);
    return failed > 0 ? 1 : 0;
}

static int print_list(void)
{
    for (uint32_t t = 0; t < TABLES; t++) {
        for (uint32_t i = 0; i < tables[t]->row_count; i++) {
            const struct lab_row *row = &tables[t]->rows[i];
            printf("%-3s %-4s %-32s %s\n", tables[t]->part, row->number,
                   row->name, row->title);
        }
    }
    return 0;
}

static int print_parts(void)
{
    for (uint32_t t = 0; t < TABLES; t++) {
        printf("%s\n", tables[t]->part);
    }
    return 0;
}

static int usage(FILE *to, int status)
{
    fputs(usage_text, to);
    return status;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"seeds", required_argument, NULL, 'n'},
        {"first", required_argument, NULL, 'f'},
        {"seed", required_argument, NULL, 's'},
        {"stop", no_argument, NULL, 'S'},
        {"list", no_argument, NULL, 'l'},
        {"parts", no_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct options o = {.first = 1, .seeds = 100};
    int option;
    while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1) {
        switch (option) {
        case 'n': o.seeds = strtoull(optarg, NULL, 10); break;
        case 'f': o.first = strtoull(optarg, NULL, 10); break;
        case 's':
            o.first = strtoull(optarg, NULL, 10);
            o.seeds = 1;
            o.one = true;
            break;
        case 'S': o.stop = true; break;
        case 'l': return print_list();
        case 'p': return print_parts();
        case 'h': return usage(stdout, 0);
        default: return usage(stderr, 2);
        }
    }
    if (o.seeds == 0) {
        return usage(stderr, 2);
    }
    log_set_level(o.one ? LOG_LEVEL_INFO : LOG_LEVEL_OFF);
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    return run_all(&o, argv + optind, argc - optind);
}
