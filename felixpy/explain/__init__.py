"""Why a packet passes or not: the calculation's own policies, judged packet by packet.  Pure."""
