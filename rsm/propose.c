/* Proposals from their caller to the core and back. Each is in one of these
 * places, and leaves to the next:
 *
 *   queued    until the end of this turn of the loop; then in one step
 *   waiting   in the core's log at {index, term}; rising in index
 *   an apply job   its entry is committed (apply.c)
 *   failed    its answer is an error, and is given at the next flush
 *
 * A proposal whose index got another entry may not have been executed; one that
 * we lost sight of may yet be. Both are ERR_NOTLEADER: the clerk asks again,
 * and its request numbers make that harmless. */
#include "base/check.h"
#include "rsm/rsm_int.h"

static void append(struct rsm_proposal **head, struct rsm_proposal **tail,
                   struct rsm_proposal *p)
{
    p->next = NULL;
    p->prev = *tail;
    if (*tail != NULL) {
        (*tail)->next = p;
    } else {
        *head = p;
    }
    *tail = p;
}

static struct rsm_proposal *shift(struct rsm_proposal **head,
                                  struct rsm_proposal **tail)
{
    struct rsm_proposal *p = *head;
    *head = p->next;
    if (*head != NULL) {
        (*head)->prev = NULL;
    } else {
        *tail = NULL;
    }
    return p;
}

void rsm_propose_fail(struct rsm *r, struct rsm_proposal *p, enum err rc)
{
    bytes_unref(p->command);
    p->command = NULL;
    p->rc = rc;
    append(&r->failed_head, &r->failed_tail, p);
    rsm_flush_later(r);
}

void rsm_propose(struct rsm *r, struct rsm_proposal *p, struct bytes *command)
{
    enum err rc = ERR_OK;
    p->command = command;
    p->reply = (struct buf){0};
    if (rsm_stopped(r)) {
        rsm_propose_fail(r, p, ERR_CLOSED);
    } else if (bytes_slice(command).size > RSM_COMMAND_SIZE_MAX) {
        rsm_propose_fail(r, p, ERR_TOOBIG);
    } else if (!r->leading) {
        rsm_propose_fail(r, p, ERR_NOTLEADER);
    } else if ((rc = rsm_space_admit(r)) != ERR_OK) {
        rsm_propose_fail(r, p, rc);
    } else if (r->queued_count + r->waiting_count >= RSM_PROPOSALS_MAX) {
        rsm_propose_fail(r, p, ERR_BUSY);
    } else {
        rsm_log_asked(r);
        append(&r->queued_head, &r->queued_tail, p);
        r->queued_count++;
        rsm_flush_later(r);
    }
}

/* Takes from the queue what goes into one step; the entries own the commands.
 */
static uint32_t gather(struct rsm *r, struct raft_entry *entries,
                       struct rsm_proposal **proposals)
{
    uint32_t count = 0;
    size_t size = 0;
    while (r->queued_head != NULL && count < RSM_PROPOSE_COUNT_MAX &&
           size < RSM_PROPOSE_SIZE_MAX) {
        struct rsm_proposal *p = shift(&r->queued_head, &r->queued_tail);
        r->queued_count--;
        entries[count] = (struct raft_entry){
            .type = RAFT_ENTRY_COMMAND,
            .data = p->command,
        };
        p->command = NULL;
        size += bytes_slice(entries[count].data).size;
        proposals[count++] = p;
    }
    return count;
}

static void propose_some(struct rsm *r)
{
    struct raft_entry entries[RSM_PROPOSE_COUNT_MAX];
    struct rsm_proposal *proposals[RSM_PROPOSE_COUNT_MAX];
    uint32_t count = gather(r, entries, proposals);
    raft_term term = raft_term_now(r->raft);
    struct raft_event event = {
        .type = RAFT_EV_PROPOSE,
        .u.propose = {.entries = entries, .count = count},
    };
    raft_index first = 0;
    enum err rc = rsm_step(r, &event, &first);
    /* Nothing of it is committed yet: that takes a sync of our own disk. */
    for (uint32_t i = 0; i < count; i++) {
        bytes_unref(entries[i].data);
        proposals[i]->index = first + i;
        proposals[i]->term = term;
        if (rc != ERR_OK) {
            rsm_propose_fail(r, proposals[i], rc);
        } else {
            append(&r->waiting_head, &r->waiting_tail, proposals[i]);
            r->waiting_count++;
        }
    }
}

void rsm_propose_flush(struct rsm *r)
{
    while (r->queued_head != NULL && !rsm_stopped(r)) {
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
    while (r->waiting_tail != NULL && r->waiting_tail->index >= first) {
        struct rsm_proposal *p = r->waiting_tail;
        uint64_t at = p->index - first;
        if (at < count && entries[at].term == p->term) {
            return; /* the same entry, stored again */
        }
        r->waiting_tail = p->prev;
        if (p->prev != NULL) {
            p->prev->next = NULL;
        } else {
            r->waiting_head = NULL;
        }
        r->waiting_count--;
        rsm_propose_fail(r, p, ERR_NOTLEADER);
    }
}

void rsm_propose_fail_upto(struct rsm *r, raft_index index)
{
    while (r->waiting_head != NULL && r->waiting_head->index <= index) {
        struct rsm_proposal *p = shift(&r->waiting_head, &r->waiting_tail);
        r->waiting_count--;
        rsm_propose_fail(r, p, ERR_NOTLEADER);
    }
}

struct rsm_proposal *rsm_propose_match(struct rsm *r, raft_index index,
                                       raft_term term)
{
    rsm_propose_fail_upto(r, index - 1);
    struct rsm_proposal *p = r->waiting_head;
    if (p == NULL || p->index != index) {
        return NULL;
    }
    shift(&r->waiting_head, &r->waiting_tail);
    r->waiting_count--;
    if (p->term != term) {
        rsm_propose_fail(r, p, ERR_NOTLEADER);
        return NULL;
    }
    return p;
}

void rsm_propose_fail_all(struct rsm *r, enum err rc)
{
    while (r->waiting_head != NULL) {
        struct rsm_proposal *p = shift(&r->waiting_head, &r->waiting_tail);
        r->waiting_count--;
        rsm_propose_fail(r, p, rc);
    }
    while (r->queued_head != NULL) {
        struct rsm_proposal *p = shift(&r->queued_head, &r->queued_tail);
        r->queued_count--;
        rsm_propose_fail(r, p, rc);
    }
}

void rsm_propose_answer_failed(struct rsm *r)
{
    while (r->failed_head != NULL) {
        struct rsm_proposal *p = shift(&r->failed_head, &r->failed_tail);
        buf_free(&p->reply);
        p->reply = (struct buf){0};
        p->done(p, p->rc, slice_of(NULL, 0));
    }
}
