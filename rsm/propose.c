/* Proposals from their caller to the core and back. Each is in one of these
 * places, and leaves to the next:
 *
 *   queued    until the end of this turn of the loop, and while as much as
 *             `under_way_size` is proposed and not answered; then in one step
 *   waiting   in the core's log at {index, term}; rising in index
 *   an apply job   its entry is committed (apply.c)
 *   failed    its answer is an error, and is given at the next flush
 *
 * What waits in the core's log, for the disks and for the applier goes in the
 * order in which it came, so that the bound is on how long a short proposal
 * waits behind long ones; and who sends much is made to wait, not refused: a
 * refused megabyte comes over the net again.
 *
 * A proposal whose index got another entry may not have been executed; one that
 * we lost sight of may yet be. Both are ERR_NOTLEADER: the clerk asks again,
 * and its request numbers make that harmless. */
#include "base/check.h"
#include "rsm/rsm_int.h"

static void append(struct rsm_proposals *list, struct rsm_proposal *p)
{
    p->next = NULL;
    p->prev = list->tail;
    if (list->tail != NULL) {
        list->tail->next = p;
    } else {
        list->head = p;
    }
    list->tail = p;
}

static struct rsm_proposal *shift(struct rsm_proposals *list)
{
    struct rsm_proposal *p = list->head;
    list->head = p->next;
    if (list->head != NULL) {
        list->head->prev = NULL;
    } else {
        list->tail = NULL;
    }
    return p;
}

void rsm_propose_over(struct rsm *r, struct rsm_proposal *p)
{
    if (!p->under_way) {
        return;
    }
    p->under_way = false;
    CHECK(r->under_way_size >= p->size);
    r->under_way_size -= p->size;
    if (r->queued_count > 0) {
        rsm_flush_later(r);
    }
}

void rsm_propose_fail(struct rsm *r, struct rsm_proposal *p, enum err rc)
{
    rsm_propose_over(r, p);
    bytes_unref(p->command);
    p->command = NULL;
    p->rc = rc;
    append(&r->failed, p);
    rsm_flush_later(r);
}

static void enqueue(struct rsm *r, struct rsm_proposal *p)
{
    append(p->size < RSM_SHORT_SIZE ? &r->queued_short : &r->queued_long, p);
    r->queued_count++;
    r->queued_size += p->size;
    rsm_flush_later(r);
}

static struct rsm_proposal *dequeue(struct rsm *r, struct rsm_proposals *list)
{
    struct rsm_proposal *p = shift(list);
    r->queued_count--;
    r->queued_size -= p->size;
    return p;
}

void rsm_propose(struct rsm *r, struct rsm_proposal *p, struct bytes *command)
{
    enum err rc = ERR_OK;
    p->command = command;
    p->size = bytes_slice(command).size;
    p->under_way = false;
    p->reply = (struct buf){0};
    if (rsm_stopped(r)) {
        rsm_propose_fail(r, p, ERR_CLOSED);
    } else if (p->size > RSM_COMMAND_SIZE_MAX) {
        rsm_propose_fail(r, p, ERR_TOOBIG);
    } else if (!r->leading) {
        rsm_propose_fail(r, p, ERR_NOTLEADER);
    } else if ((rc = rsm_space_admit(r)) != ERR_OK) {
        rsm_propose_fail(r, p, rc);
    } else if (r->queued_count + r->waiting_count >= RSM_PROPOSALS_MAX ||
               r->queued_size >= RSM_PROPOSALS_SIZE_MAX) {
        rsm_propose_fail(r, p, ERR_BUSY);
    } else {
        rsm_log_asked(r);
        enqueue(r, p);
    }
}

/* What goes into one step, from the queue; the entries own the commands. */
struct step {
    struct raft_entry entries[RSM_PROPOSE_COUNT_MAX];
    struct rsm_proposal *proposals[RSM_PROPOSE_COUNT_MAX];
    uint32_t count;
    size_t size;
};

static void gather(struct rsm *r, struct step *s, struct rsm_proposals *list,
                   uint32_t count_max, size_t size_max)
{
    while (list->head != NULL && s->count < count_max && s->size < size_max) {
        struct rsm_proposal *p = dequeue(r, list);
        s->entries[s->count] = (struct raft_entry){
            .type = RAFT_ENTRY_COMMAND,
            .data = p->command,
        };
        p->command = NULL;
        s->size += p->size;
        s->proposals[s->count++] = p;
    }
}

/* Short ones first, and of both kinds some in each step: neither waits for all
 * of the other. */
static void gather_both(struct rsm *r, struct step *s)
{
    if (r->queued_long.head != NULL) {
        gather(r, s, &r->queued_short, RSM_PROPOSE_COUNT_MAX / 2,
               RSM_PROPOSE_SIZE_MAX / 2);
        gather(r, s, &r->queued_long, RSM_PROPOSE_COUNT_MAX,
               RSM_PROPOSE_SIZE_MAX);
    } else {
        gather(r, s, &r->queued_short, RSM_PROPOSE_COUNT_MAX,
               RSM_PROPOSE_SIZE_MAX);
    }
}

static void propose_some(struct rsm *r)
{
    struct step s;
    s.count = 0;
    s.size = 0;
    gather_both(r, &s);
    raft_term term = raft_term_now(r->raft);
    struct raft_event event = {
        .type = RAFT_EV_PROPOSE,
        .u.propose = {.entries = s.entries, .count = s.count},
    };
    raft_index first = 0;
    enum err rc = rsm_step(r, &event, &first);
    /* Nothing of it is committed yet: that takes a sync of our own disk. */
    for (uint32_t i = 0; i < s.count; i++) {
        struct rsm_proposal *p = s.proposals[i];
        bytes_unref(s.entries[i].data);
        p->index = first + i;
        p->term = term;
        if (rc != ERR_OK) {
            rsm_propose_fail(r, p, rc);
        } else {
            append(&r->waiting, p);
            r->waiting_count++;
            p->under_way = true;
            r->under_way_size += p->size;
        }
    }
}

/* Who does not lead any more finds out by proposing. */
static bool has_room(const struct rsm *r)
{
    return !r->leading || r->under_way_size < r->config.under_way_size;
}

void rsm_propose_flush(struct rsm *r)
{
    while (r->queued_count > 0 && has_room(r) && !rsm_stopped(r)) {
        propose_some(r);
    }
}

/* A new leader's entries, or our own of a new term, took the places. */
void rsm_propose_overwritten(struct rsm *r, const struct raft_entry *entries,
                             uint32_t count)
{
    if (count == 0) {
        return;
    }
    raft_index first = entries[0].index;
    while (r->waiting.tail != NULL && r->waiting.tail->index >= first) {
        struct rsm_proposal *p = r->waiting.tail;
        uint64_t at = p->index - first;
        if (at < count && entries[at].term == p->term) {
            return; /* the same entry, stored again */
        }
        r->waiting.tail = p->prev;
        if (p->prev != NULL) {
            p->prev->next = NULL;
        } else {
            r->waiting.head = NULL;
        }
        r->waiting_count--;
        rsm_propose_fail(r, p, ERR_NOTLEADER);
    }
}

void rsm_propose_fail_upto(struct rsm *r, raft_index index)
{
    while (r->waiting.head != NULL && r->waiting.head->index <= index) {
        struct rsm_proposal *p = shift(&r->waiting);
        r->waiting_count--;
        rsm_propose_fail(r, p, ERR_NOTLEADER);
    }
}

struct rsm_proposal *rsm_propose_match(struct rsm *r, raft_index index,
                                       raft_term term)
{
    rsm_propose_fail_upto(r, index - 1);
    struct rsm_proposal *p = r->waiting.head;
    if (p == NULL || p->index != index) {
        return NULL;
    }
    shift(&r->waiting);
    r->waiting_count--;
    if (p->term != term) {
        rsm_propose_fail(r, p, ERR_NOTLEADER);
        return NULL;
    }
    return p;
}

void rsm_propose_fail_all(struct rsm *r, enum err rc)
{
    while (r->waiting.head != NULL) {
        struct rsm_proposal *p = shift(&r->waiting);
        r->waiting_count--;
        rsm_propose_fail(r, p, rc);
    }
    while (r->queued_count > 0) {
        struct rsm_proposals *list =
            r->queued_short.head != NULL ? &r->queued_short : &r->queued_long;
        rsm_propose_fail(r, dequeue(r, list), rc);
    }
}

void rsm_propose_answer_failed(struct rsm *r)
{
    while (r->failed.head != NULL) {
        struct rsm_proposal *p = shift(&r->failed);
        buf_free(&p->reply);
        p->reply = (struct buf){0};
        p->done(p, p->rc, slice_of(NULL, 0));
    }
}
