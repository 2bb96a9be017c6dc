/*
** address.h - which addresses are of the public network: what somebody else's request may be sent to.
*/
#ifndef FM_NET_ADDRESS_H
#define FM_NET_ADDRESS_H

#include <stdbool.h>
#include <sys/socket.h>

/* False for loopback, private, link-local, shared, documentation, multicast and reserved addresses, for those that carry such a one
   inside (mapped, NAT64, 6to4), and for families other than IP. Source: the special-purpose registries of RFC 6890 and its updates. */
bool fm_address_public(const struct sockaddr *a);

#endif
