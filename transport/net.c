/* What a net that cannot share bytes does instead. */
#include "transport/net.h"

#include <string.h>

struct bytes *net_keep(struct net *net, struct slice body, size_t room)
{
    struct bytes *kept =
        net->ops->keep != NULL ? net->ops->keep(net, body, room) : NULL;
    if (kept == NULL) {
        kept = bytes_new(room + body.size);
        if (body.size > 0) {
            memcpy(kept->data + room, body.data, body.size);
        }
    }
    return kept;
}

void net_send_parts(struct net *net, const char *address, net_method method,
                    const struct net_part *parts, uint32_t part_count)
{
    if (net->ops->send_parts != NULL) {
        net->ops->send_parts(net, address, method, parts, part_count);
        return;
    }
    struct slice *copied = mem_array(part_count, sizeof *copied);
    for (uint32_t i = 0; i < part_count; i++) {
        copied[i] = parts[i].data;
    }
    net_send(net, address, method, copied, part_count);
    mem_free(copied);
}
