/* simulate: whole clusters from seeds. See usage(). */
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
#include "tests/sim/cluster.h"

static const char usage_text[] =
    "usage: simulate [--seeds N] [--first S] [--seed S] [--scenario NAME]\n"
    "                [--minutes M] [--keep-going] [--quiet]\n"
    "\n"
    "Runs N clusters (100), from seed S (1) on; --seed runs one, twice, with\n"
    "its trace; --minutes stops after that time. A failure ends it, unless\n"
    "--keep-going. Exit status: 0 all held, 1 a property did not, 2 usage.\n"
    "Scenarios (default: the seed chooses):";

struct options {
    uint64_t first, seeds;
    const char *scenario;
    double minutes;
    bool one, keep_going, quiet;
};

struct totals {
    uint64_t seeds, failed, events, messages, virtual_us;
    uint64_t operations, unknown, crashes, changes, elections, committed;
    uint64_t member_changes, cuts, cuts_moving, repairs, repairs_refused;
};

/* For the handler of a failed check: which seed is running. */
static uint64_t current_seed;
static const char *current_scenario;

static void print_replay(uint64_t seed, const char *scenario)
{
    printf("replay it with: make sim SEED=%" PRIu64 "%s%s\n", seed,
           scenario != NULL ? " SCENARIO=" : "",
           scenario != NULL ? scenario : "");
}

/* A check of the program itself failed, or it crashed: say which seed. */
static void on_signal(int number)
{
    char line[160];
    int size =
        snprintf(line, sizeof line,
                 "\nsimulate: seed %" PRIu64 ": the program died of signal %d\n"
                 "replay it with: make sim SEED=%" PRIu64 "%s%s\n",
                 current_seed, number, current_seed,
                 current_scenario != NULL ? " SCENARIO=" : "",
                 current_scenario != NULL ? current_scenario : "");
    ssize_t written = write(STDOUT_FILENO, line, (size_t)size);
    (void)written;
    signal(number, SIG_DFL);
    raise(number);
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void totals_add(struct totals *t, const struct result *r)
{
    t->seeds++;
    t->failed += r->failed;
    t->events += r->events;
    t->messages += r->messages;
    t->virtual_us += r->virtual_us;
    t->operations += r->operations;
    t->unknown += r->unknown;
    t->crashes += r->crashes;
    t->changes += r->changes;
    t->member_changes += r->member_changes;
    t->elections += r->elections;
    t->repairs += r->repairs;
    t->repairs_refused += r->repairs_refused;
    t->cuts += r->cuts;
    t->cuts_moving += r->cuts_moving;
    t->committed += r->committed;
}

static void totals_print(const struct totals *t, double wall)
{
    double hours = (double)t->virtual_us / 3.6e9;
    printf("seeds %" PRIu64 ", operations %" PRIu64 " (%" PRIu64
           " without an answer), log entries %" PRIu64 ", elections %" PRIu64
           ", crashes %" PRIu64 ", cuts %" PRIu64 " (%" PRIu64
           " of shards on their way), configurations %" PRIu64
           ", changes of members %" PRIu64 ", logs repaired %" PRIu64
           " times (refused %" PRIu64 "), messages %" PRIu64 ", events %" PRIu64
           "\n",
           t->seeds, t->operations, t->unknown, t->committed, t->elections,
           t->crashes, t->cuts, t->cuts_moving, t->changes, t->member_changes,
           t->repairs, t->repairs_refused, t->messages, t->events);
    printf("simulated %.2f cluster-hours in %.1f s: %.2f hours per minute\n",
           hours, wall, wall > 0 ? hours * 60 / wall : 0);
}

static bool run_one(const struct options *o, uint64_t seed, bool twice,
                    struct totals *t)
{
    struct result r, again;
    current_seed = seed;
    simulate_run(seed, o->scenario, o->one && !o->quiet, &r);
    totals_add(t, &r);
    if (twice && !r.failed) {
        simulate_run(seed, o->scenario, false, &again);
        /* The same seed must give the same run, or no failure can be found
         * again: pointers, clocks or hash order got in. */
        CHECK(r.hash == again.hash);
        CHECK(r.events == again.events);
    }
    if (r.failed) {
        printf("seed %" PRIu64 " FAILED: %s\n", seed, r.failure);
        print_replay(seed, o->scenario);
    } else if (o->one) {
        printf("seed %" PRIu64 ": all held; hash %016" PRIx64 "\n", seed,
               r.hash);
    }
    fflush(stdout);
    return !r.failed;
}

static int run_all(const struct options *o)
{
    struct totals t = {0};
    double start = seconds_now();
    double said = start;
    for (uint64_t i = 0; i < o->seeds; i++) {
        bool held = run_one(o, o->first + i, i == 0, &t);
        double now = seconds_now();
        if (!held && !o->keep_going) {
            break;
        }
        if (o->minutes > 0 && now - start > o->minutes * 60) {
            break;
        }
        if (now - said > 10) {
            said = now;
            printf("... seed %" PRIu64 ": %" PRIu64 " passed, %" PRIu64
                   " failed\n",
                   o->first + i, t.seeds - t.failed, t.failed);
            fflush(stdout);
        }
    }
    totals_print(&t, seconds_now() - start);
    printf("%" PRIu64 " passed, %" PRIu64 " failed\n", t.seeds - t.failed,
           t.failed);
    return t.failed > 0 ? 1 : 0;
}

static int usage(FILE *to, int status)
{
    fputs(usage_text, to);
    fflush(to);
    plan_print_names();
    return status;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"seeds", required_argument, NULL, 'n'},
        {"first", required_argument, NULL, 'f'},
        {"seed", required_argument, NULL, 's'},
        {"scenario", required_argument, NULL, 'c'},
        {"minutes", required_argument, NULL, 'm'},
        {"keep-going", no_argument, NULL, 'k'},
        {"quiet", no_argument, NULL, 'q'},
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
        case 'c': o.scenario = optarg; break;
        case 'm':
            o.minutes = strtod(optarg, NULL);
            o.seeds = UINT64_MAX;
            break;
        case 'k': o.keep_going = true; break;
        case 'q': o.quiet = true; break;
        case 'h': return usage(stdout, 0);
        default: return usage(stderr, 2);
        }
    }
    struct plan plan;
    if (optind < argc || !plan_make(&plan, 1, o.scenario)) {
        return usage(stderr, 2);
    }
    log_set_level(o.one && !o.quiet ? LOG_LEVEL_INFO : LOG_LEVEL_OFF);
    current_scenario = o.scenario;
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    printf("simulate: seeds from %" PRIu64 "\n", o.first);
    fflush(stdout);
    return run_all(&o);
}
