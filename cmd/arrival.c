#include "cmd/arrival.h"

#include <inttypes.h>
#include <stdio.h>

static bool grows(uint64_t *mark, uint64_t now)
{
    bool more = now > *mark;
    *mark = more ? now : *mark;
    return more;
}

/* A new leader makes a snapshot of its own, and so does one whose stream broke
 * after it had brought something: that may take as long as it takes. */
static void note_stream(struct arrival *a, uint64_t term,
                        const struct rsm_member *m)
{
    if (term > a->term) {
        *a = (struct arrival){.term = term, .match = a->match};
    }
    if (m->snap_index != 0 && m->snap_index != a->stream) {
        a->made = a->brought ? 0 : a->made;
        a->brought = false;
        a->stream = m->snap_index;
    }
}

bool arrival_moves(struct arrival *a, uint64_t term, const struct rsm_member *m)
{
    note_stream(a, term, m);
    if (grows(&a->match, m->match)) {
        *a = (struct arrival){.term = a->term, .match = a->match};
        return true; /* the next snapshot is another's work */
    }
    uint64_t done = m->snap_done + 1; /* that a phase begins counts too */
    bool moves = false;
    switch ((enum rsm_snap_phase)m->snap_phase) {
    case RSM_SNAP_NONE: return false;
    case RSM_SNAP_MAKING: return grows(&a->made, done);
    case RSM_SNAP_SENDING: moves = grows(&a->sent, done); break;
    case RSM_SNAP_INSTALLING: moves = grows(&a->installed, done); break;
    }
    a->brought |= moves;
    return moves;
}

const char *arrival_words(const struct rsm_member *m, uint64_t last_index,
                          char text[ARRIVAL_WORDS_SIZE])
{
    uint64_t done = m->snap_done >> 20, all = m->snap_all >> 20;
    if (m->active == 0) {
        snprintf(text, ARRIVAL_WORDS_SIZE,
                 "it does not answer: does its process run?");
        return text;
    }
    switch ((enum rsm_snap_phase)m->snap_phase) {
    case RSM_SNAP_MAKING:
        snprintf(text, ARRIVAL_WORDS_SIZE,
                 "the leader has written %" PRIu64 " MiB of a snapshot for it",
                 done);
        return text;
    case RSM_SNAP_SENDING:
        snprintf(text, ARRIVAL_WORDS_SIZE,
                 "%" PRIu64 " of %" PRIu64 " MiB of its snapshot have arrived",
                 done, all);
        return text;
    case RSM_SNAP_INSTALLING:
        snprintf(text, ARRIVAL_WORDS_SIZE,
                 "%" PRIu64 " of %" PRIu64 " MiB of its snapshot are installed",
                 done, all);
        return text;
    case RSM_SNAP_NONE: break;
    }
    snprintf(text, ARRIVAL_WORDS_SIZE,
             "it has %" PRIu64 " of %" PRIu64 " log entries", m->match,
             last_index);
    return text;
}
