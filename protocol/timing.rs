//! Where the time of a step went.

use bincode::{Decode, Encode};

use crate::StageIndex;

/// Where a stage's part of a step went, in microseconds.
///
/// The parts follow each other without a gap, from the arrival of the frame's last byte until QUIC
/// has taken the last byte of what the stage makes of it: decode, wait, hand-off, upload, compute,
/// readback, hand-off, encode, send. Clocks of two machines are never compared: what is left of
/// the time that a step was away from the coordinator, once the parts of all its stages are taken
/// off, was spent in the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StageTiming {
    /// The stage that took the times.
    pub stage: StageIndex,
    /// Making a frame of bytes; 0 when it never left the process.
    pub decode_us: u32,
    /// Behind other steps, in the stage's inbox and before its device.
    pub wait_us: u32,
    /// From one task to the next, to the device's thread and back, with nothing in the way.
    pub handoff_us: u32,
    /// Taking in the batch, and writing it and the hidden state into the device's buffers.
    pub upload_us: u32,
    /// Handing over commands, and the device's time, its copies from and to host memory included.
    pub compute_us: u32,
    /// Making values of the bytes that the device left in host memory.
    pub readback_us: u32,
    /// Making bytes of a frame; of the one that the stage sent before, since a frame can't tell
    /// how long it takes itself. 0 within a process.
    pub encode_us: u32,
    /// Until QUIC had taken those bytes: what flow control held up. Of the frame before, too.
    pub send_us: u32,
    /// Smoothed round trip of the connection on which the stage's frames leave; 0 within a
    /// process.
    pub rtt_us: u32,
    /// Bytes of the frame that arrived; 0 within a process.
    pub received_bytes: u32,
}

impl StageTiming {
    /// Everything between a frame's arrival and the departure of the next.
    pub fn total_us(&self) -> u64 {
        [
            self.decode_us,
            self.wait_us,
            self.handoff_us,
            self.upload_us,
            self.compute_us,
            self.readback_us,
            self.encode_us,
            self.send_us,
        ]
        .into_iter()
        .map(u64::from)
        .sum()
    }
}
