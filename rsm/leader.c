/* Becoming leader, ceasing to be, and giving it away.
 *
 *   core: leader --> propose a no-op --> applied here --> on_leader(true)
 *   core: lost   --> on_leader(false); what waits has two election timeouts
 *                    to be resolved by the next leader's entries           */
#include "base/check.h"
#include "base/log.h"
#include "rsm/rsm_int.h"

#include <inttypes.h>

enum { STEP_DOWN_LOOK_MS = 20 };

void rsm_leader_update(struct rsm *r, const struct raft_update *u)
{
    if (!u->became_leader && !u->lost_leadership) {
        return;
    }
    struct raft_status status;
    raft_status(r->raft, &status);
    if (r->leading || u->lost_leadership) {
        r->retracted = true;
        rsm_outgoing_stop(r);
        env_timer_start(r->env, &r->lost,
                        2 * r->config.election_max_ms * UINT64_C(1000));
    }
    r->leading = status.role == RAFT_LEADER;
    r->want_noop = r->leading && !r->config.no_noop;
    r->noop = 0;
    log_info("rsm", "%s group=%u id=%" PRIu64 " term=%" PRIu64,
             r->leading ? "became leader" : "lost leadership", r->config.group,
             r->config.id, status.term);
    rsm_flush_later(r);
}

/* The new term's first entry: older terms' entries commit with it
 * (section 5.4.2 of the paper), and reads may begin. */
void rsm_leader_noop(struct rsm *r)
{
    struct raft_entry entry = {.type = RAFT_ENTRY_NOOP};
    struct raft_event event = {
        .type = RAFT_EV_PROPOSE,
        .u.propose = {.entries = &entry, .count = 1},
    };
    raft_index index = 0;
    r->want_noop = false;
    enum err rc = rsm_step(r, &event, &index);
    if (rc == ERR_OK) {
        r->noop = index;
    } else if (rc == ERR_BUSY) {
        r->want_noop = r->leading; /* at the next step */
    }
}

/* From places where the user may call us back. */
void rsm_leader_tell(struct rsm *r)
{
    if (rsm_stopped(r)) {
        return;
    }
    if (r->announced && (r->retracted || !r->leading)) {
        r->announced = false;
        if (r->config.on_leader != NULL) {
            r->config.on_leader(r->config.arg, false);
        }
    }
    r->retracted = false;
    bool ready = r->config.no_noop || (r->noop != 0 && r->applied >= r->noop);
    if (r->leading && !r->announced && ready) {
        r->announced = true;
        if (r->config.on_leader != NULL) {
            r->config.on_leader(r->config.arg, true);
        }
    }
}

static void on_lost(struct env_timer *t)
{
    struct rsm *r = (struct rsm *)((char *)t - offsetof(struct rsm, lost));
    if (!r->leading) {
        rsm_propose_fail_all(r, ERR_NOTLEADER);
    }
}

/* --- Stepping down */

static void step_down_end(struct rsm *r)
{
    void (*done)(void *arg) = r->step_down_done;
    r->step_down_done = NULL;
    if (done != NULL) {
        done(r->step_down_arg);
    }
}

static void on_step_down(struct env_timer *t)
{
    struct rsm *r = (struct rsm *)((char *)t - offsetof(struct rsm, step_down));
    if (!r->leading || env_now_ms(r->env) >= r->step_down_until_ms) {
        step_down_end(r);
        return;
    }
    if (env_now_ms(r->env) >= r->step_down_again_ms) {
        struct raft_event event = {.type = RAFT_EV_TRANSFER};
        (void)!rsm_step(r, &event, NULL); /* peer 0: the most up to date */
        r->step_down_again_ms = env_now_ms(r->env) + r->config.election_max_ms;
    }
    env_timer_start(r->env, &r->step_down, STEP_DOWN_LOOK_MS * UINT64_C(1000));
}

void rsm_step_down(struct rsm *r, uint32_t timeout_ms, void (*done)(void *arg),
                   void *arg)
{
    CHECK(r->step_down_done == NULL);
    r->step_down_done = done;
    r->step_down_arg = arg;
    r->step_down_again_ms = 0;
    r->step_down_until_ms = env_now_ms(r->env) + timeout_ms;
    env_timer_start(r->env, &r->step_down, 0);
}

void rsm_leader_init(struct rsm *r)
{
    r->lost.fire = on_lost;
    r->step_down.fire = on_step_down;
}

void rsm_leader_close(struct rsm *r)
{
    env_timer_stop(r->env, &r->lost);
    env_timer_stop(r->env, &r->step_down);
    step_down_end(r);
}
