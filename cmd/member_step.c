/* A step of `flotilla member`: a wish, repeated until the group has it. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cmd/arrival.h"
#include "cmd/ask.h"
#include "cmd/member_int.h"
#include "cmd/process.h"
#include "cmd/progress.h"

enum {
    WISH_MS = 2000,
    PATIENCE_MS = 60000, /* for a step that makes no progress */
    BUSY_MS = 10000,     /* for others to come back */
    TOLD_MS = 15000,
};

void member_pause(long ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

const char *member_group_name(uint32_t gid, char text[32])
{
    if (gid == 0) {
        return "the controllers";
    }
    snprintf(text, 32, "group %u", gid);
    return text;
}

/* ---- asking the group ---- */

/* Takes what `address` says if it is newer than what we have. True when it
 * leads. */
static bool take_members(struct change *ch, const char *address,
                         struct slice body)
{
    struct arena arena = {0};
    struct rsm_members m;
    if (rsm_members_decode(arena_copy(&arena, body), &arena, &m) != ERR_OK ||
        m.term < ch->members.term ||
        (m.term == ch->members.term && m.leader == 0)) {
        arena_free(&arena);
        return false;
    }
    bool leads = false;
    for (uint32_t i = 0; i < m.members_count; i++) {
        leads |= m.members[i].id == m.leader &&
                 slice_compare(m.members[i].address, slice_text(address)) == 0;
    }
    bool better =
        leads || m.term > ch->members.term || ch->members.members_count == 0;
    if (better) {
        arena_free(&ch->arena);
        ch->arena = arena;
        ch->members = m;
    } else {
        arena_free(&arena);
    }
    return leads;
}

struct asking {
    struct change *ch;
    struct ask_whom whom[CLUSTER_REPLICAS_MAX];
    uint32_t count;
    bool led; /* the leader itself has answered */
};

static bool answered(void *arg, uint32_t i, enum err rc, struct slice body)
{
    struct asking *a = arg;
    a->led = rc == ERR_OK && take_members(a->ch, a->whom[i].address, body);
    return a->led;
}

/* Asks everybody known, until the leader itself has answered. */
bool member_ask(struct change *ch)
{
    struct asking a = {.ch = ch};
    for (uint32_t i = 0; i < ch->c.replica_count; i++) {
        if (ch->c.replicas[i].gid == ch->gid) {
            a.whom[a.count++] = (struct ask_whom){ch->c.replicas[i].address,
                                                  RSM_METHOD_MEMBERS};
        }
    }
    ask_many(ch->client, a.whom, a.count, MEMBER_ASK_MS, answered, &a);
    return a.led;
}

const struct rsm_member *member_find(const struct change *ch, uint64_t id)
{
    for (uint32_t i = 0; i < ch->members.members_count; i++) {
        if (ch->members.members[i].id == id) {
            return &ch->members.members[i];
        }
    }
    return NULL;
}

static bool leader_address(const struct change *ch,
                           char address[NET_ADDRESS_SIZE_MAX])
{
    const struct rsm_member *leader = member_find(ch, ch->members.leader);
    if (leader == NULL || leader->address.size >= NET_ADDRESS_SIZE_MAX) {
        return false;
    }
    memcpy(address, leader->address.data, leader->address.size);
    address[leader->address.size] = 0;
    return true;
}

/* ---- one step ---- */

const char member_silent_words[] =
    "it does not answer: start it with `flotilla up`, or name another";

static const char *const step_names[] = {
    [RSM_ADD] = "add",
    [RSM_PROMOTE] = "promote",
    [RSM_REMOVE] = "remove",
    [RSM_TRANSFER] = "hand leadership to",
};

static const char *refusal(enum rsm_change_kind kind, enum err rc)
{
    switch (rc) {
    case ERR_BUSY:
        return "afterwards no majority of the group would answer: start the "
               "replicas that are down, or remove those first";
    case ERR_EXISTS:
        return kind == RSM_TRANSFER
                   ? "it leads already"
                   : "the address or the id is, or was, another replica's";
    case ERR_NOTFOUND: return "the group has no such replica";
    case ERR_INVALID: return "it is the group's last voter";
    case ERR_TOOBIG: return "the group has 16 replicas, which is the bound";
    case ERR_DENIED: return "that takes the certificate of an admin";
    default: return err_text(rc);
    }
}

/* `led`: who led when the step began; 0: not known yet. Once another leads,
 * "any other" is reached: asked again, it would hand leadership on. */
static bool has_moved(const struct change *ch, const struct rsm_wish *wish,
                      uint64_t *led)
{
    *led = *led == 0 ? ch->members.leader : *led;
    return wish->kind == RSM_TRANSFER && wish->id == 0 &&
           ch->members.leader != *led;
}

static enum err ask_wish(struct change *ch, const struct rsm_wish *wish,
                         uint64_t *led)
{
    char address[NET_ADDRESS_SIZE_MAX];
    struct arena arena = {0};
    struct slice out;
    struct buf body = {0};
    if (!member_ask(ch) || !leader_address(ch, address)) {
        return ERR_NOTLEADER;
    }
    if (has_moved(ch, wish, led)) {
        return ERR_OK;
    }
    rsm_wish_encode(&body, wish);
    enum err rc =
        ask_call(ch->client, address, RSM_METHOD_CHANGE, buf_slice(&body),
                 WISH_MS + MEMBER_ASK_MS, &arena, &out);
    buf_free(&body);
    arena_free(&arena);
    return rc;
}

/* Waiting for a new replica, and what is shown of that. */
struct watch {
    struct arrival arrival;
    struct progress progress;
    uint8_t phase; /* that the line is of */
};

static const char *const phase_lines[] = {
    [RSM_SNAP_MAKING] = "  making its snapshot",
    [RSM_SNAP_SENDING] = "  snapshot",
    [RSM_SNAP_INSTALLING] = "  installing the snapshot",
};

uint8_t member_snap_phase(const struct rsm_member *m)
{
    return m->snap_phase <= RSM_SNAP_INSTALLING ? m->snap_phase : RSM_SNAP_NONE;
}

static void watch_end(struct watch *w)
{
    if (w->phase != RSM_SNAP_NONE) {
        progress_end(&w->progress);
    }
    w->phase = RSM_SNAP_NONE;
}

static void watch_show(struct watch *w, const struct rsm_member *m,
                       uint64_t last_index)
{
    uint8_t phase = member_snap_phase(m);
    if (phase != w->phase) {
        watch_end(w);
    }
    if (phase == RSM_SNAP_NONE) {
        char words[ARRIVAL_WORDS_SIZE];
        printf("  %s\n", arrival_words(m, last_index, words));
        return;
    }
    if (phase != w->phase) {
        progress_begin(&w->progress, phase_lines[phase], 0);
        w->progress.unit = "MiB";
        w->phase = phase;
    }
    w->progress.total_bytes = m->snap_all >> 20;
    progress_show(&w->progress, m->snap_done >> 20, 0);
}

/* A new replica's progress is a reason to wait on; that others get what clients
 * write is none. */
static bool advances(const struct change *ch, uint64_t id, struct watch *w)
{
    const struct rsm_member *m = member_find(ch, id);
    if (m == NULL || !arrival_moves(&w->arrival, ch->members.term, m)) {
        return false;
    }
    watch_show(w, m, ch->members.last_index);
    return true;
}

static void say_failure(const struct change *ch, enum rsm_change_kind kind,
                        uint64_t id, enum err rc)
{
    char name[32], who[32] = "another replica", words[ARRIVAL_WORDS_SIZE];
    const struct rsm_member *m = member_find(ch, id);
    if (id != 0) {
        snprintf(who, sizeof who, "replica %" PRIu64, id);
    }
    fprintf(stderr, "flotilla: cannot %s %s of %s: ", step_names[kind], who,
            member_group_name(ch->gid, name));
    if (kind == RSM_PROMOTE && rc == ERR_TIMEDOUT && m != NULL) {
        fprintf(stderr, "nothing has moved for %d s: %s\n", PATIENCE_MS / 1000,
                arrival_words(m, ch->members.last_index, words));
    } else if (kind == RSM_TRANSFER && rc == ERR_TIMEDOUT && m != NULL &&
               m->active == 0) {
        fprintf(stderr, "%s\n", member_silent_words);
    } else {
        fprintf(stderr, "%s\n",
                rc == ERR_NOTLEADER ? "no leader answers: is a majority "
                                      "running?"
                                    : refusal(kind, rc));
    }
}

/* Nobody else is waited for than who may still come. Who is silent may be alive
 * to its leader for a while yet: leadership is not offered to it for a minute,
 * as clients wait meanwhile. */
static bool is_final(const struct change *ch, const struct rsm_wish *wish,
                     enum err rc, uint64_t waited_ms)
{
    const struct rsm_member *m = member_find(ch, wish->id);
    switch (rc) {
    case ERR_TIMEDOUT:
        return wish->kind == RSM_TRANSFER && m != NULL && m->active == 0;
    case ERR_BUSY: return waited_ms > BUSY_MS;
    case ERR_NOTLEADER:
    case ERR_CLOSED:
    case ERR_IO: return false;
    default: return true;
    }
}

/* Asks until it is done; false with words on standard error. */
bool member_step(struct change *ch, enum rsm_change_kind kind, uint64_t id,
                 const char *address)
{
    const struct rsm_wish wish = {.kind = (uint8_t)kind,
                                  .id = id,
                                  .address = slice_text(address),
                                  .timeout_ms = WISH_MS};
    enum err rc = ERR_OK;
    uint64_t led = 0;
    char name[32];
    struct watch watch = {0};
    bool said = false;
    /* By the clock: whoever is halted makes each question take its time. */
    uint64_t moved_ms = process_now_ms();
    for (uint64_t waited = 0; waited < PATIENCE_MS;
         waited = process_now_ms() - moved_ms) {
        rc = ask_wish(ch, &wish, &led);
        if (rc == ERR_OK) {
            watch_end(&watch);
            return true;
        }
        if (is_final(ch, &wish, rc, waited)) {
            break;
        }
        if (rc == ERR_NOTLEADER && waited >= 2000 && !said) {
            said = true;
            printf("  no leader of %s answers yet; asking for up to %d s\n",
                   member_group_name(ch->gid, name), PATIENCE_MS / 1000);
        }
        if (kind == RSM_PROMOTE && rc == ERR_TIMEDOUT &&
            advances(ch, id, &watch)) {
            moved_ms = process_now_ms();
        }
        member_pause(MEMBER_PAUSE_MS);
    }
    watch_end(&watch);
    say_failure(ch, kind, id, rc);
    return false;
}

/* Clerks find the group through the controllers' configuration, which its
 * leader brings up to date. */
static bool is_told(struct change *ch)
{
    struct arena arena = {0};
    struct ctl_config config;
    bool same = true;
    if (ch->gid != 0 && ask_config(ch->client, CTL_LATEST, MEMBER_ASK_MS,
                                   &arena, &config) == ERR_OK) {
        const struct ctl_group *g = ctl_config_group(&config, ch->gid);
        uint32_t voters = 0;
        for (uint32_t i = 0; i < ch->members.members_count; i++) {
            const struct rsm_member *m = &ch->members.members[i];
            bool found = m->role == RSM_LEARNER;
            voters += !found;
            for (uint32_t k = 0; g != NULL && k < g->servers_count; k++) {
                found |= g->servers[k].id == m->id;
            }
            same &= found;
        }
        same = g == NULL || (same && g->servers_count == voters);
    }
    arena_free(&arena);
    return same;
}

/* Servers and mounts ask the controllers who they are. Then those that stay are
 * known to all, before one that everybody knew goes. */
void member_wait_heard(const struct change *ch, uint64_t id)
{
    const uint32_t wait_ms = CTL_LOOK_MS + 1000; /* it takes time to answer */
    const struct rsm_member *m = member_find(ch, id);
    if (ch->gid == 0 && m != NULL && m->role != RSM_LEARNER) {
        printf("Servers and mounts hear of the others within %u s.\n",
               wait_ms / 1000);
        member_pause(wait_ms);
    }
}

void member_wait_told(struct change *ch)
{
    uint64_t end_ms = process_now_ms() + TOLD_MS;
    while (process_now_ms() < end_ms) {
        if (member_ask(ch) && is_told(ch)) {
            return;
        }
        member_pause(MEMBER_PAUSE_MS);
    }
    fprintf(stderr, "flotilla: the controllers do not know of it yet; the "
                    "group's leader goes on telling them\n");
}
