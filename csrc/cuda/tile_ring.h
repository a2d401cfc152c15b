// Tiles on their way from global to shared memory, in a ring of kStages stages: one of each warp, which then never
// waits for another one, or one of the block. Two ways to copy: cp.async by all threads (sm_80), or bulk copies with
// barriers by one (sm_90).
#pragma once

#include "cuda/device.h"
#include "cuda/fragment_tile.h"
#include "cuda/kernels.h"

namespace sparsecore::cuda {

// What is in flight per multiprocessor must cover latency times bandwidth, some 50 KB on an H200: 8 warps with two
// stages of about 4 KB on their way and one in work.
inline constexpr int kStages = 3;

template <bool kBulk, bool kOfBlock = false>
class TileRing {
 public:
  // memory: stage_bytes for each stage of each ring; barriers: kStages for each. `first`, `end`, `step`: the ring's
  // tiles.
  SPARSECORE_DEVICE TileRing(const FragmentArrays& weight, uint8_t* memory, uint64_t* barriers, int first, int end,
                             int step)
      : weight_(weight),
        memory_(memory + ring() * kStages * weight.stage_bytes),
        barriers_(barriers + ring() * kStages),
        next_(first),
        end_(end),
        step_(step) {
    if constexpr (kBulk) {
      if (member() == 0) {
        for (int stage = 0; stage < kStages; ++stage) init_barrier(barriers_ + stage);
        publish_barriers();
      }
      sync();
    }
    extent_ = extent_of(next_);
    for (int stage = 0; stage < kStages; ++stage) fetch(stage);
  }

  // The shared address of the ring's next tile, once it is there and all of its threads have come.
  SPARSECORE_DEVICE uint32_t wait() {
    if constexpr (kBulk) {
      wait_barrier(barriers_ + stage_, phase_);
    } else {
      wait_for_copies<kStages - 1>();
    }
    sync();
    return shared_address(memory_) + static_cast<uint32_t>(stage_ * weight_.stage_bytes);
  }

  // When all threads have read it, its stage takes another one.
  SPARSECORE_DEVICE void release() {
    sync();
    fetch(stage_);
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    if (stage_ == 0) phase_ ^= 1;
  }

  // Nothing is on its way any more.
  SPARSECORE_DEVICE void finish() {
    if constexpr (!kBulk) wait_for_copies<0>();
  }

 private:
  static SPARSECORE_DEVICE int ring() { return kOfBlock ? 0 : thread_index() / kWarp; }
  static SPARSECORE_DEVICE int member() { return kOfBlock ? thread_index() : thread_index() % kWarp; }
  static SPARSECORE_DEVICE int members() { return kOfBlock ? block_threads() : kWarp; }
  static SPARSECORE_DEVICE void sync() {
    if constexpr (kOfBlock) {
      sync_block();
    } else {
      sync_warp();
    }
  }

  struct Extent {
    int begin;  // in units
    int bytes;
  };

  // Inside the blob and a stage, whatever tile_ptr says.
  SPARSECORE_DEVICE Extent extent_of(int tile) const {
    if (tile >= end_) return {0, 0};
    const int begin = load(weight_.tile_ptr + tile), end = load(weight_.tile_ptr + tile + 1);
    if (begin < 0 || end < begin || int64_t(end) * kFragmentUnit > weight_.blob_bytes) return {0, 0};
    if (end - begin > weight_.stage_bytes / kFragmentUnit) return {0, 0};
    return {begin, (end - begin) * kFragmentUnit};
  }

  SPARSECORE_DEVICE void fetch(int stage) {
    uint8_t* to = memory_ + stage * weight_.stage_bytes;
    const uint8_t* from = weight_.blob + int64_t(extent_.begin) * kFragmentUnit;
    if constexpr (kBulk) {
      if (member() == 0 && next_ < end_) {
        expect_bytes(barriers_ + stage, static_cast<uint32_t>(extent_.bytes));
        if (extent_.bytes > 0) copy_bulk(to, from, static_cast<uint32_t>(extent_.bytes), barriers_ + stage);
      }
    } else {
      for (int at = member() * kFragmentUnit; at < extent_.bytes; at += members() * kFragmentUnit)
        copy_async(to + at, from + at);
      commit_copies();
    }
    next_ += step_;
    extent_ = extent_of(next_);  // now, so that it is there when this stage is free again
  }

  const FragmentArrays& weight_;
  uint8_t* memory_;
  uint64_t* barriers_;
  int next_, end_, step_;
  Extent extent_;
  int stage_ = 0;
  uint32_t phase_ = 0;
};

}  // namespace sparsecore::cuda
