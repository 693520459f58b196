/* The subcommands: each takes its own argv (argv[0] is its name) and gives an
 * exit status (cmd/args.h). This folder is the only place where the parts are
 * joined. */
#ifndef CMD_CMD_H
#define CMD_CMD_H

#include <stdbool.h>
#include <stdint.h>

struct cluster;
struct cluster_replica;

int cmd_up(int argc, char **argv);
int cmd_down(int argc, char **argv);
int cmd_server(int argc, char **argv);
int cmd_mount(int argc, char **argv);
/* Makes the directory, and looks whether it can be mounted there, or is by
 * `c` (NULL: a cluster yet to be made). False with words on standard error. */
bool mount_is_possible(const struct cluster *c, const char *mountpoint);
int cmd_umount(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_kv(int argc, char **argv);
int cmd_shards(int argc, char **argv);
int cmd_member(int argc, char **argv);
/* Starts a replica's process unless it runs; false with words on standard
 * error. */
bool replica_start(const struct cluster *c, const struct cluster_replica *r);
/* Makes the logs of a group that stands still whole from each other; false with
 * words on standard error. */
bool repair_group(const struct cluster *c, uint32_t gid);
int cmd_certs(int argc, char **argv);
int cmd_backup(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_fsck(int argc, char **argv);
int cmd_bench(int argc, char **argv);

#define FLOTILLA_VERSION "0.1.0"

#endif
