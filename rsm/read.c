/* Linearizable reads (thesis 6.4). All reads of one turn of the loop share one
 * name in the core, and all that may run share one job on the apply worker:
 * waking a thread costs more than most reads.
 *
 *   queued --flush--> batch, asked --granted at index i--> held until the apply
 *   worker was given entries up to i --> its job --> done()
 *
 * A job ends when its answers hold RSM_READ_HELD_SIZE, and what is left is the
 * next one: in between the loop sends them, or finds that nobody takes them. */
#include "base/check.h"
#include "rsm/rsm_int.h"

struct rsm_read_batch {
    struct rsm_read_batch *next;
    uint64_t name;
    bool granted;
    raft_index index;
    struct rsm_read_list reads;
};

struct read_job {
    struct env_job job;
    struct rsm *rsm;
    struct rsm_read_list reads; /* once it has run: those that did */
    struct rsm_read_list left;
};

static void append(struct rsm_read_list *list, struct rsm_read *rd)
{
    rd->next = NULL;
    if (list->tail != NULL) {
        list->tail->next = rd;
    } else {
        list->head = rd;
    }
    list->tail = rd;
    list->count++;
}

static struct rsm_read *take(struct rsm_read_list *list)
{
    struct rsm_read *rd = list->head;
    list->head = rd->next;
    list->tail = list->head == NULL ? NULL : list->tail;
    list->count--;
    return rd;
}

static void join(struct rsm_read_list *to, struct rsm_read_list *from)
{
    if (from->head == NULL) {
        return;
    }
    if (to->tail != NULL) {
        to->tail->next = from->head;
    } else {
        to->head = from->head;
    }
    to->tail = from->tail;
    to->count += from->count;
    *from = (struct rsm_read_list){0};
}

static void set_rc(struct rsm_read_list *list, enum err rc)
{
    for (struct rsm_read *rd = list->head; rd != NULL; rd = rd->next) {
        rd->rc = rc;
    }
}

static void fail_list(struct rsm *r, struct rsm_read_list *list, enum err rc)
{
    if (list->head == NULL) {
        return; /* or a flush that has none to fail asks for the next one */
    }
    set_rc(list, rc);
    join(&r->reads_failed, list);
    rsm_flush_later(r);
}

static void answer_list(struct rsm *r, struct rsm_read_list *list)
{
    struct rsm_read *rd = list->head;
    *list = (struct rsm_read_list){0};
    while (rd != NULL) {
        struct rsm_read *next = rd->next; /* done() may free it */
        r->reads_count--;
        rd->done(rd, rd->rc);
        rd = next;
    }
}

/* --- The job */

static void submit(struct rsm *r, struct rsm_read_list *reads);

static void on_run(struct env_job *job)
{
    struct read_job *j = (struct read_job *)job;
    enum err rc = ERR_OK;
    bool whole = rsm_space_enter(j->rsm, &rc);
    size_t held = 0;
    j->left = j->reads;
    j->reads = (struct rsm_read_list){0};
    while (j->left.head != NULL && held < RSM_READ_HELD_SIZE) {
        struct rsm_read *rd = take(&j->left);
        if (whole) {
            rd->run(rd);
        } else {
            rd->rc = ERR_BUSY;
        }
        held += rd->held;
        append(&j->reads, rd);
    }
}

static void on_done(struct env_job *job)
{
    struct read_job *j = (struct read_job *)job;
    struct rsm *r = j->rsm;
    if (rsm_stopped(r)) {
        set_rc(&j->left, ERR_CLOSED);
        join(&j->reads, &j->left);
    }
    submit(r, &j->left); /* first: the worker should not wait for the answers */
    if (r->dead) {
        fail_list(r, &j->reads, ERR_CLOSED);
    } else {
        answer_list(r, &j->reads);
    }
    mem_free(j);
}

static void submit(struct rsm *r, struct rsm_read_list *reads)
{
    if (reads->head == NULL) {
        return;
    }
    struct read_job *j = mem_alloc(sizeof *j);
    j->job.run = on_run;
    j->job.done = on_done;
    j->rsm = r;
    join(&j->reads, reads);
    env_worker_submit(r->env, r->apply_worker, &j->job);
}

/* --- On the loop */

static void enqueue(struct rsm *r, struct rsm_read_list *list,
                    struct rsm_read *rd)
{
    rd->rc = ERR_OK;
    rsm_log_asked(r);
    r->reads_count++;
    if (rsm_stopped(r) || r->reads_count > RSM_READS_MAX) {
        rd->rc = rsm_stopped(r) ? ERR_CLOSED : ERR_BUSY;
        list = &r->reads_failed;
    }
    append(list, rd);
    rsm_flush_later(r);
}

void rsm_read(struct rsm *r, struct rsm_read *rd)
{
    enqueue(r, &r->reads_queued, rd);
}

void rsm_read_local(struct rsm *r, struct rsm_read *rd)
{
    enqueue(r, &r->reads_local, rd);
}

static struct rsm_read_batch *take_batch(struct rsm *r, uint64_t name)
{
    for (struct rsm_read_batch **at = &r->batches; *at != NULL;
         at = &(*at)->next) {
        if ((*at)->name == name) {
            struct rsm_read_batch *b = *at;
            *at = b->next;
            return b;
        }
    }
    return NULL;
}

static void fail_batch(struct rsm *r, uint64_t name, enum err rc)
{
    struct rsm_read_batch *b = take_batch(r, name);
    if (b != NULL) {
        fail_list(r, &b->reads, rc);
        mem_free(b);
    }
}

static void ask(struct rsm *r)
{
    struct rsm_read_batch *b = mem_alloc(sizeof *b);
    uint64_t name = ++r->read_name;
    b->name = name;
    join(&b->reads, &r->reads_queued);
    b->next = r->batches;
    r->batches = b;
    /* The step may grant it at once, and run it. */
    struct raft_event event = {.type = RAFT_EV_READ, .u.read = name};
    enum err rc = rsm_step(r, &event, NULL);
    if (rc != ERR_OK) {
        fail_batch(r, name, rc);
    }
}

void rsm_read_flush(struct rsm *r)
{
    if (rsm_stopped(r)) {
        return;
    }
    if (rsm_space_hides(r)) {
        fail_list(r, &r->reads_local, ERR_BUSY);
    }
    submit(r, &r->reads_local);
    if (r->reads_queued.head != NULL) {
        ask(r);
    }
}

void rsm_read_granted(struct rsm *r, const struct raft_read *reads,
                      uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (reads[i].rc != ERR_OK) {
            fail_batch(r, reads[i].read, reads[i].rc);
            continue;
        }
        for (struct rsm_read_batch *b = r->batches; b != NULL; b = b->next) {
            if (b->name == reads[i].read) {
                b->granted = true;
                b->index = reads[i].index;
            }
        }
    }
}

/* One job for all batches whose entries the apply worker has been given. */
void rsm_read_pump(struct rsm *r)
{
    if (rsm_stopped(r)) {
        return;
    }
    struct rsm_read_list ready = {0};
    for (struct rsm_read_batch **at = &r->batches; *at != NULL;) {
        struct rsm_read_batch *b = *at;
        bool hidden = b->granted && rsm_space_hides(r);
        if (hidden) {
            fail_list(r, &b->reads, ERR_BUSY);
        }
        if (hidden || (b->granted && b->index <= r->submitted)) {
            join(&ready, &b->reads);
            *at = b->next;
            mem_free(b);
        } else {
            at = &b->next;
        }
    }
    submit(r, &ready);
}

void rsm_read_fail_all(struct rsm *r, enum err rc)
{
    fail_list(r, &r->reads_queued, rc);
    fail_list(r, &r->reads_local, rc);
    while (r->batches != NULL) {
        fail_batch(r, r->batches->name, rc);
    }
}

void rsm_read_answer_failed(struct rsm *r)
{
    answer_list(r, &r->reads_failed);
}
