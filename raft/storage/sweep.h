/* Frees the space of files whose names are gone, piece by piece, on a thread of
 * its own. A disk that is told to forget 64 MiB at once (ext4 mounted with
 * `discard`, an SSD) does nothing else for 50 ms, and each sync of each process
 * on it waits as long: measured, docs/benchmarks.md. */
#ifndef RAFT_STORAGE_SWEEP_H
#define RAFT_STORAGE_SWEEP_H

struct sweep;

struct sweep *sweep_new(void);
/* Closes `fd`, of a file without a name, when all of it is freed; at once when
 * too many wait. Any thread. */
void sweep_file(struct sweep *s, int fd);
/* What is left is freed at once. */
void sweep_free(struct sweep *s);

#endif
