#include "cmd/behind.h"

#include <time.h>

#include "cmd/process.h"

enum { LOOK_MS = 100, ASK_MS = 1000 };

/* All whose answer says less than their leader's. */
static uint32_t suspect(const struct health *h, struct behind *found)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < h->count; i++) {
        const struct ask_replica *one = &h->replicas[i];
        struct health_group g = health_of(h, one->gid);
        if (one->rc == ERR_OK && one->status.gid == one->gid &&
            g.leader != NULL && one->status.applied < g.leader->status.commit) {
            found[count++] = (struct behind){
                .replica = i,
                .entries = g.leader->status.commit - one->status.applied};
        }
    }
    return count;
}

/* Keeps those that have still not executed all that, and answer. */
static uint32_t look_again(const struct health *h, struct skv_client *client,
                           struct behind *found, uint32_t count)
{
    struct ask_replica *again = mem_alloc(count * sizeof *again);
    struct arena arena = {0};
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        again[i] = h->replicas[found[i].replica];
    }
    ask_statuses(client, again, count, ASK_MS, &arena);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t before = h->replicas[found[i].replica].status.applied;
        uint64_t now = again[i].status.applied;
        found[i].executed = now > before ? now - before : 0;
        if (again[i].rc == ERR_OK && found[i].executed < found[i].entries) {
            found[kept++] = found[i];
        }
    }
    arena_free(&arena);
    mem_free(again);
    return kept;
}

uint32_t behind_find(const struct health *h, struct skv_client *client,
                     struct behind *found)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
    uint64_t until_ms = process_now_ms() + BEHIND_MS;
    uint32_t count = suspect(h, found);
    while (count > 0 && process_now_ms() < until_ms) {
        nanosleep(&pause, NULL);
        count = look_again(h, client, found, count);
    }
    return count;
}
