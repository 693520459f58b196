/* Daemons of a cluster: started, known by a pid file that also holds the
 * process's start time (so that a pid used again is never taken for ours), and
 * stopped by pid. */
#ifndef CMD_PROCESS_H
#define CMD_PROCESS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The pid in `pid_file` if that very process still runs, else 0. One that was
 * killed and has not ended is waited for, 10 s at most. */
pid_t process_alive(const char *pid_file);

/* Starts this program with `argv` (argv[0] is the subcommand; NULL at the end)
 * in a session of its own, output appended to `log_file`. Writes `pid_file`
 * before the child does anything, so that whoever is interrupted leaves nothing
 * unknown behind; waits until the child says that it is ready
 * (process_ready()), and gives its pid. 0 when it ended or stayed silent for
 * `timeout_ms`: it is stopped then, and `words` has its last words. */
pid_t process_spawn(const char *const *argv, const char *log_file,
                    const char *pid_file, uint32_t timeout_ms, char *words,
                    size_t words_size);

/* In the child: `fd` is what --ready-fd said; below 0: nothing to do. */
void process_ready(int fd);

/* SIGTERM, after `grace_ms` SIGKILL; removes the pid file. True if it ran. */
bool process_stop(const char *pid_file, uint32_t grace_ms);

/* As process_stop() for many, waiting for all of them together. */
uint32_t process_stop_all(char (*pid_files)[PATH_MAX], uint32_t count,
                          uint32_t grace_ms);

/* Can somebody listen on this TCP port of 127.0.0.1 now? */
bool process_port_free(uint32_t port);

/* Milliseconds of a clock that is never set. */
uint64_t process_now_ms(void);

/* User and system CPU time of a process, in clock ticks; 0 if gone. */
uint64_t process_cpu_ticks(pid_t pid);

#endif
