"""Which attributes an export keeps: a list of what is needed, never of what to remove.

The Basic Profile of PS3.15 (table E.1-1) names what must go. New attributes, private
ones and whatever a vendor puts where are on no such list, so this one works the other
way: what is not named here is gone. Nothing here is free text that a person typed.
"""

from __future__ import annotations

# Filled anew or emptied, whatever stood there: see deidentify.py.
EMPTIED = (
    "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip

# Shifted by so many days for each patient; times of day stay.
DATES = frozenset(
    {"StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime",
     "FrameAcquisitionDateTime", "FrameReferenceDateTime"}
)  # fmt: skip
TIMES = frozenset({"StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"})

UIDS = frozenset(
    {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
     "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ConcatenationUID", "DimensionOrganizationUID",
     "SynchronizationFrameOfReferenceUID", "IrradiationEventUID"}
)  # fmt: skip

# Numbers and coded words about one image, by the module they belong to.
GENERAL = frozenset(
    {"SpecificCharacterSet", "Modality", "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "ImageType",
     "BodyPartExamined", "Laterality", "ImageLaterality", "PatientPosition", "PatientOrientation",
     "PositionReferenceIndicator", "Manufacturer", "ManufacturerModelName", "SoftwareVersions",
     "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
     "BurnedInAnnotation", "QualityControlImage", "TemporalPositionIdentifier",
     "NumberOfTemporalPositions", "TemporalResolution", "ImagesInAcquisition", "PresentationIntentType"}
)  # fmt: skip
GEOMETRY = frozenset(
    {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
     "SpacingBetweenSlices", "SliceLocation", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
     "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor", "PixelAspectRatio",
     "GantryDetectorTilt", "TableHeight", "ReconstructionDiameter", "DataCollectionDiameter",
     "DistanceSourceToDetector", "DistanceSourceToPatient", "VolumetricProperties",
     "VolumeBasedCalculationTechnique"}
)  # fmt: skip
PIXELS = frozenset(
    {"SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns",
     "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
     "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "PixelPaddingRangeLimit",
     "RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "VOILUTFunction",
     "PresentationLUTShape", "PixelIntensityRelationship", "PixelIntensityRelationshipSign", "PixelData",
     "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "LUTDescriptor", "LUTData", "ModalityLUTType"}
)  # fmt: skip
MR = frozenset(
    {"ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName",
     "RepetitionTime", "EchoTime", "EchoNumbers", "EchoTrainLength", "InversionTime", "TriggerTime",
     "NumberOfAverages", "ImagingFrequency", "ImagedNucleus", "MagneticFieldStrength",
     "NumberOfPhaseEncodingSteps", "PercentSampling", "PercentPhaseFieldOfView", "PixelBandwidth",
     "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "FlipAngle", "VariableFlipAngleFlag", "SAR",
     "dBdt", "AngioFlag", "DiffusionBValue", "DiffusionGradientOrientation", "DiffusionDirectionality",
     "DiffusionAnisotropyType", "ComplexImageComponent", "AcquisitionContrast", "PulseSequenceName",
     "EffectiveEchoTime", "InversionTimes", "EchoPulseSequence", "InversionRecovery", "FlowCompensation",
     "Spoiling", "T2Preparation", "SteadyStatePulseSequence", "EchoPlanarPulseSequence",
     "MultipleSpinEcho", "MultiPlanarExcitation", "PhaseContrast", "TimeOfFlightContrast",
     "SpectrallySelectedSuppression", "OversamplingPhase", "GeometryOfKSpaceTraversal",
     "SegmentedKSpaceTraversal", "RectilinearPhaseEncodeReordering", "PartialFourier",
     "PartialFourierDirection", "ParallelAcquisition", "ParallelAcquisitionTechnique",
     "ParallelReductionFactorInPlane", "ParallelReductionFactorOutOfPlane", "SpatialPresaturation",
     "MagnetizationTransfer", "BloodSignalNulling", "Tagging", "KSpaceFiltering", "ResonantNucleus",
     "TransmitterFrequency", "AcquisitionDuration", "ContentQualification", "PixelPresentation",
     "ApplicableSafetyStandardAgency", "RFEchoTrainLength", "GradientEchoTrainLength",
     "SpecificAbsorptionRateDefinition", "SpecificAbsorptionRateValue", "GradientOutputType",
     "GradientOutput", "OperatingModeType", "OperatingMode", "ReceiveCoilType", "TransmitCoilType",
     "QuadratureReceiveCoil", "MRAcquisitionFrequencyEncodingSteps",
     "MRAcquisitionPhaseEncodingStepsInPlane", "MRAcquisitionPhaseEncodingStepsOutOfPlane",
     "MRSpatialSaturationSequence"}
)  # fmt: skip
CT_AND_RADIOGRAPH = frozenset(
    {"KVP", "ExposureTime", "XRayTubeCurrent", "Exposure", "ExposureInmAs", "ExposureTimeInms",
     "XRayTubeCurrentInmA", "FilterType", "FocalSpots", "ConvolutionKernel", "ConvolutionKernelGroup",
     "RotationDirection", "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed",
     "TableFeedPerRotation", "SpiralPitchFactor", "RevolutionTime", "CTDIvol", "MultienergyCTAcquisition",
     "ViewPosition", "AnodeTargetMaterial", "BodyPartThickness", "RelativeXRayExposure", "ExposureIndex",
     "TargetExposureIndex", "DeviationIndex", "Sensitivity", "Grid", "DetectorType",
     "DetectorConfiguration", "DetectorActiveShape", "FieldOfViewShape", "FieldOfViewDimensions",
     "PositionerType", "AcquisitionType", "ReconstructionAlgorithm", "DataCollectionCenterPatient",
     "ReconstructionTargetCenterPatient", "ReconstructionPixelSpacing", "ReconstructionFieldOfView"}
)  # fmt: skip
CODED = frozenset({"CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"})
SEQUENCES = frozenset(
    {"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence",
     "DimensionIndexSequence", "FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence",
     "PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence",
     "FrameAnatomySequence", "AnatomicRegionSequence", "ViewCodeSequence", "ModalityLUTSequence",
     "MRImageFrameTypeSequence", "MRTimingAndRelatedParametersSequence", "MREchoSequence",
     "MRDiffusionSequence", "DiffusionGradientDirectionSequence", "MRModifierSequence",
     "MRImagingModifierSequence", "MRFOVGeometrySequence", "MRAveragesSequence", "MRReceiveCoilSequence",
     "MRTransmitCoilSequence", "SpecificAbsorptionRateSequence", "OperatingModeSequence",
     "CTImageFrameTypeSequence", "CTAcquisitionTypeSequence", "CTAcquisitionDetailsSequence",
     "CTTableDynamicsSequence", "CTPositionSequence", "CTGeometrySequence", "CTReconstructionSequence",
     "CTExposureSequence", "CTXRayDetailsSequence"}
)  # fmt: skip
FRAMES = frozenset(
    {"FrameType", "FrameAcquisitionNumber", "FrameAcquisitionDuration", "DimensionIndexValues",
     "DimensionIndexPointer", "FunctionalGroupPointer", "StackID", "InStackPositionNumber",
     "TemporalPositionIndex", "FrameLaterality", "InConcatenationNumber",
     "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber", "DimensionOrganizationType",
     "CardiacCyclePosition", "RespiratoryCyclePosition"}
)  # fmt: skip

AS_THEY_ARE = GENERAL | GEOMETRY | PIXELS | MR | CT_AND_RADIOGRAPH | CODED | FRAMES | TIMES
