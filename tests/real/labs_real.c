/* labs_real: the rows of the labs' suite on processes. See usage(). */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "tests/real/home.h"
#include "tests/real/process.h"

extern const struct lab_table lab_raft_2a, lab_raft_2b, lab_raft_2c,
    lab_raft_2d, lab_kv_3a, lab_kv_3b, lab_shard_4a, lab_shard_4b;

static const struct lab_table *const tables[] = {
    &lab_raft_2a, &lab_raft_2b, &lab_raft_2c,  &lab_raft_2d,
    &lab_kv_3a,   &lab_kv_3b,   &lab_shard_4a, &lab_shard_4b,
};

enum {
    TABLES = sizeof tables / sizeof *tables,
    EXIT_INTERRUPTED = 130,
    RUNS_MAX = 6, /* of one row */
};

static const char usage_text[] =
    "usage: labs_real [--seed S] [--list] [WHICH]...\n"
    "\n"
    "Runs rows of the labs' suite on real processes, each once. WHICH is a "
    "part (2B),\n"
    "the parts that begin so (2), a row (R12), or text in a name (Backup). A "
    "row's\n"
    "line is the labs': seconds, peers, RPCs, bytes in RPCs, entries. A row "
    "that fails\n"
    "leaves its directory. While the machine stands still there are elections, "
    "and\nanswers come late: a row that failed then says so, and is run "
    "again.\n"
    "--seed: of the row's own choices.\n"
    "Exit status: 0 all passed, 1 a row failed, 2 usage, 130 interrupted.\n";

struct sum {
    uint32_t passed, failed;
};

/* A row's bounds are those of a machine that runs. Only what was measured
 * excuses a failure: it says nothing of one that did not stand still. */
static bool run_once(const struct lab_row *row, struct lab_run *run, bool last)
{
    struct lab_run fresh = {.name = row->name, .seed = run->seed};
    uint64_t before_us = process_stood_still_us();
    *run = fresh;
    row->run(run);
    uint64_t still_us = process_stood_still_us() - before_us;
    if (!run->failed || still_us == 0 || last || home_interrupted()) {
        return true;
    }
    printf("    the machine stood still for %" PRIu64 " ms: %s; once more\n",
           still_us / 1000, run->failure);
    home_row_remove();
    return false;
}

static void run_row(const struct lab_table *table, const struct lab_row *row,
                    uint64_t seed, struct sum *sum)
{
    struct lab_run run = {.seed = seed};
    printf("Test (%s): %s ...\n", table->part, row->title);
    fflush(stdout);
    for (int i = 1; !run_once(row, &run, i == RUNS_MAX); i++) {
        fflush(stdout);
    }
    if (home_interrupted()) {
        printf("  ... interrupted\n");
    } else if (run.failed) {
        printf("    seed %" PRIu64 ": %s\n    its directory is %s\n"
               "--- FAIL: %s (%s) after %.1f s\n",
               seed, run.failure, home_row_dir(), row->name, row->number,
               run.seconds);
        sum->failed++;
    } else {
        printf("  ... Passed --  %4.1f  %u %4" PRIu64 " %7" PRIu64 " %4" PRIu64
               "\n",
               run.seconds, run.peers, run.rpcs, run.bytes, run.entries);
        sum->passed++;
    }
    fflush(stdout);
}

static int run_all(uint64_t seed, char **which, int count)
{
    struct sum sum = {0};
    if (!home_make()) {
        return 1;
    }
    for (uint32_t t = 0; t < TABLES; t++) {
        for (uint32_t i = 0; i < tables[t]->row_count; i++) {
            const struct lab_row *row = &tables[t]->rows[i];
            if (!home_interrupted() &&
                lab_wanted(tables[t], row, which, count)) {
                run_row(tables[t], row, seed, &sum);
            }
        }
    }
    home_remove();
    if (home_interrupted()) {
        return EXIT_INTERRUPTED;
    }
    if (sum.passed + sum.failed == 0) {
        fprintf(stderr, "labs_real: no row has that name; see --list\n");
        return 2;
    }
    printf("%u passed, %u failed\n", sum.passed, sum.failed);
    return sum.failed > 0 ? 1 : 0;
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

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"seed", required_argument, NULL, 's'},
        {"list", no_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    uint64_t seed = (uint64_t)time(NULL);
    int option;
    while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1) {
        switch (option) {
        case 's': seed = strtoull(optarg, NULL, 10); break;
        case 'l': return print_list();
        case 'h': fputs(usage_text, stdout); return 0;
        default: fputs(usage_text, stderr); return 2;
        }
    }
    log_set_level(LOG_LEVEL_OFF);
    return run_all(seed, argv + optind, argc - optind);
}
