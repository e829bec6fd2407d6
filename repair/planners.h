// The planners: each plans one kind of repair, everything of its kind that it can.
//
// All take a CheckState, a finished check of plan.image() with unlimited findings, and add to the
// plan. None relies on another having run: MakePlan (repair/plan.cc) calls them in the order in
// which repairs are safe, and checks the image again after the first that planned something.
#ifndef QCOW2CHECK_REPAIR_PLANNERS_H_
#define QCOW2CHECK_REPAIR_PLANNERS_H_

#include "checker/check_state.h"
#include "common/header_extension.h"
#include "repair/plan_builder.h"

namespace qcow2check {

// Header: how long the refcount table is, where the length makes no sense.
void PlanRefcountTableLength(CheckState& state, PlanBuilder& plan);

// Header: the true place and size of the active L1 table; a larger one for a larger disk.
void PlanL1Table(CheckState& state, PlanBuilder& plan);

// Snapshot table: entries, their L1 tables, the header's pointer to it.
void PlanSnapshots(CheckState& state, PlanBuilder& plan);

// Bitmaps: their header extension, where one value of a damaged field is proven. Its length says
// where the extensions behind it are.
void PlanBitmapsExtension(CheckState& state, PlanBuilder& plan);

// Bitmaps: the same, and drops bad ones, keeps the others.
void PlanBitmaps(CheckState& state, PlanBuilder& plan);

// L1 and L2 entries whose right value is proven: flags, reserved bits, pointers that exactly one
// orphan explains.
void PlanProvenEntries(CheckState& state, PlanBuilder& plan);

// L1 and L2 entries that point to nothing and that nothing explains: they read as zeros.
void PlanLostEntries(CheckState& state, PlanBuilder& plan);

// L2 tables that hold something else: what can be proven of them goes to a new table.
void PlanLostTables(CheckState& state, PlanBuilder& plan);

// Refcounts below the number of references, where there is a place for them: before all else.
void PlanRaisedRefcounts(CheckState& state, PlanBuilder& plan);

// Refcount blocks and table that cannot be used, refcounts that are too narrow.
void PlanRefcountStructures(CheckState& state, PlanBuilder& plan);

// Guest clusters that share their host cluster with others or with metadata get their own.
void PlanOwnClusters(CheckState& state, PlanBuilder& plan);

// COPIED flags that do not say what the refcounts say.
void PlanCopiedFlags(CheckState& state, PlanBuilder& plan);

// Refcounts above the number of references: proven leaks, and with free_orphans the others.
void PlanLoweredRefcounts(CheckState& state, PlanBuilder& plan);

// A note in the image that orphans are to be kept; false, and nothing planned, if there is no room.
bool PlanNote(CheckState& state, OrphanNote orphans, PlanBuilder& plan);
// Makes the note void when there are no orphans left.
void PlanNoteWithdrawn(CheckState& state, PlanBuilder& plan);

// The dirty and corrupt bits, if nothing else is wrong.
void PlanFeatureBits(CheckState& state, PlanBuilder& plan);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_PLANNERS_H_
